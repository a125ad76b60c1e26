"""The language of the shop: what things are called, by those who sell them and by those who look for them."""

import re
from dataclasses import dataclass
from functools import cache
from typing import Final

ATTRIBUTES: Final = ("colour", "material", "feature", "brand", "size", "budget")  # what can be wished of a thing
COLOUR, MATERIAL, FEATURE, BRAND, SIZE, BUDGET = range(6)
BUDGETS: Final = ("low", "middle", "high")

# Each value has several forms. The first one is what structured data says.
COLOURS: Final = (
    "black/jet black", "white/snow white", "grey/gray/charcoal", "navy/dark blue", "blue/azure", "green/emerald",
    "red/crimson", "pink/rose", "beige/sand/cream", "brown/chestnut", "yellow/mustard", "silver/metallic",
    "purple/violet", "orange/tangerine",
)  # fmt: skip
CHEAP: Final = ("cheap", "budget", "affordable", "inexpensive")  # budgets in queries; no text says them of a product
MIDDLING: Final = ("mid range", "reasonably priced")
DEAR: Final = ("premium", "luxury", "high end")
FILLERS: Final = ("best", "good", "buy", "new")
UNDER: Final = "under {}"  # EUR

# Per category: when it is wanted most (day of the year, times its mean), materials, features, sizes where a kind has
# none of its own, makers, and kinds:
#   name, synonyms | words it shares with others | what it is for | typical price in EUR | sizes
_SHOP: Final = {
    "furniture": ("""
        280 1.3
        oak/solid oak, leather/real leather, faux leather/leatherette, velvet, rattan/wicker, steel/metal,
        pine/pinewood
        foldable/folding, stackable, extendable/extending, stain resistant/stain proof, with storage/storage, swivel
        60 cm, 90 cm, 120 cm, 180 cm
        Norvik, Lindholm, Casaro, Brackwood, Moebelo, Tavira, Hearthline, Oakfield
        """, """
        sofa, couch, settee | seat | living room, movie night | 600 | 160 cm, 180 cm, 220 cm, 250 cm
        armchair, lounge chair | chair, seat | living room, reading corner | 250 |
        office chair, desk chair | chair, seat | home office, long working days | 160 |
        dining chair | chair | dining room | 80 |
        desk, writing table | table | home office, homework | 200 |
        coffee table, side table | table | living room | 120 |
        bookcase, bookshelf | shelf | reading corner, home library | 130 |
        wardrobe, closet | cupboard | bedroom | 350 |
        bed frame, bedstead | bed | bedroom, guest room | 300 | 90 cm, 140 cm, 160 cm, 180 cm
        *standing desk, sit stand desk | table, desk | home office, back pain | 380 |
        """),
    "shoes": ("""
        100 1.4
        leather/real leather, suede, canvas, mesh/breathable mesh, rubber, faux leather/vegan leather
        waterproof/rainproof, lightweight/light, wide fit/extra wide, slip resistant/non slip,
        cushioned/soft sole, insulated/lined
        size 37, size 39, size 41, size 43, size 45
        Strydon, Fenwick, Alto Passo, Runara, Terrako, Velmont, Piedra, Kolibri
        """, """
        trainers, sneakers | shoes, sports shoes | gym, everyday wear | 80 |
        running shoes, joggers | shoes, sports shoes | marathon training, jogging | 110 |
        hiking boots, walking boots | boots, outdoor shoes | hiking, mountain trips | 140 |
        wellingtons, rain boots, gumboots | boots | rainy days, muddy paths | 45 |
        chelsea boots, ankle boots | boots | autumn, office wear | 120 |
        sandals, slides | shoes, summer shoes | beach, summer holidays | 50 |
        loafers, slip ons | shoes | office wear, weddings | 95 |
        slippers, house shoes | shoes | cold floors, lazy sundays | 30 |
        football boots, soccer cleats | boots, sports shoes | football, grass pitches | 90 |
        *barefoot shoes, minimalist shoes | shoes | natural walking, foot strength | 105 |
        """),
    "electronics": ("""
        340 1.6
        aluminium/aluminum, plastic, glass, carbon fibre/carbon fiber, brushed steel/stainless steel
        wireless/cordless, noise cancelling/noise reducing, fast charging/quick charge,
        splash proof/water resistant, foldable/folding, with microphone/mic
        64 GB, 128 GB, 256 GB, 512 GB
        Auralis, Zentrix, Pixora, Novatec, Hyperion, Lumo, Quantia, Sonabit
        """, """
        headphones, headset | audio, music player accessories | commuting, video calls | 120 | 30 h, 40 h, 60 h
        earbuds, in ear headphones | audio, headphones | jogging, commuting | 90 | 6 h, 8 h, 12 h
        smartphone, mobile phone, cell phone | phone | photos, everyday use | 450 |
        tablet, tablet computer | computer | drawing, movie night | 350 |
        laptop, notebook | computer | home office, studying | 850 |
        television, tv, telly | screen | movie night, sports evenings | 600 | 32 inch, 43 inch, 55 inch, 65 inch
        monitor, computer display | screen | home office, gaming | 260 | 24 inch, 27 inch, 32 inch, 34 inch
        speaker, loudspeaker | audio | parties, kitchen radio | 110 | 10 W, 20 W, 40 W
        power bank, portable charger | charger | travelling, festivals | 40 | 5000 mAh, 10000 mAh, 20000 mAh
        *smart ring, fitness ring | tracker, wearable | sleep tracking, heart rate | 280 | size 7, size 9, size 11
        """),
    "kitchen": ("""
        345 1.4
        stainless steel/steel, cast iron/iron, ceramic/stoneware, glass/borosilicate glass, bamboo, silicone, copper
        dishwasher safe/machine washable, non stick/nonstick, induction ready/for induction, with lid/lidded,
        programmable/with timer, bpa free/without bpa
        250 ml, 500 ml, 1 l, 2 l
        Cucinara, Bravenna, Stahlhof, Morrow, Tidewell, Pottery Lane, Fuego, Kestrel
        """, """
        frying pan, skillet | pan, cookware | steaks, quick dinners | 45 | 20 cm, 24 cm, 28 cm, 32 cm
        saucepan, cooking pot | pot, cookware | soups, pasta | 50 |
        kettle, water boiler | pot, appliance | tea time, instant noodles | 40 |
        coffee maker, coffee machine | appliance, machine | breakfast, office kitchen | 120 |
        blender, smoothie maker | appliance, mixer | smoothies, baby food | 70 |
        stand mixer, kneading machine | appliance, mixer, machine | baking, pizza dough | 280 | 3 l, 5 l, 7 l
        chopping board, cutting board | board | carving meat, vegetables | 25 | 30 cm, 40 cm, 50 cm
        mug, coffee cup | cup | tea time, office kitchen | 12 |
        water bottle, drinking flask | bottle | school trips, hiking | 22 |
        *air fryer, hot air fryer | appliance, machine | chips, cooking without oil | 130 | 3 l, 5 l, 7 l
        """),
    "clothing": ("""
        320 1.3
        cotton/organic cotton, wool/merino, linen, polyester/recycled polyester, denim, silk, fleece
        waterproof/rainproof, quick drying/fast drying, padded/quilted, hooded/with hood, slim fit/slim,
        oversized/loose fit
        size S, size M, size L, size XL
        Harrow, Maison Vey, Northgate, Tessuto, Birch and Bay, Loomcraft, Arden, Solbright
        """, """
        rain jacket, raincoat, mac | jacket, coat | rainy days, hiking | 90 |
        winter jacket, parka | jacket, coat | cold days, ski holidays | 170 |
        jumper, sweater, pullover | top | autumn, cosy evenings | 55 |
        hoodie, hooded sweatshirt | top | everyday wear, gym | 50 |
        t shirt, tee | top | summer, everyday wear | 18 |
        trousers, slacks, chinos | bottoms | office wear | 60 |
        jeans, denim trousers | bottoms | everyday wear | 75 |
        dress, gown | womenswear | weddings, parties | 85 |
        scarf, shawl | accessory | cold days | 28 | 150 cm, 180 cm, 200 cm
        *heated vest, heated gilet | jacket, top | cold days, motorcycling | 140 |
        """),
    "garden": ("""
        130 2.2
        teak, rattan/wicker, aluminium/aluminum, terracotta/clay, steel/metal, recycled plastic/plastic
        weatherproof/weather resistant, foldable/folding, cordless/battery powered, rust free/rustproof,
        adjustable, self watering
        40 cm, 80 cm, 120 cm, 200 cm
        Verdant, Thornbury, Solara, Gardenia, Rootwell, Meadowmark, Wetherby, Fernhill
        """, """
        garden chair, patio chair | chair, seat | barbecues, terrace | 60 |
        garden table, patio table | table | barbecues, terrace | 160 |
        parasol, sun umbrella | umbrella, shade | terrace, hot days | 90 | 200 cm, 250 cm, 300 cm
        lawn mower, grass cutter | mower, machine | large lawns | 250 | 32 cm, 38 cm, 46 cm
        hose, garden hose | watering | dry summers, flower beds | 35 | 15 m, 25 m, 50 m
        plant pot, planter | pot | balcony, herbs | 25 | 20 cm, 30 cm, 40 cm
        barbecue, grill, bbq | grill, cooker | barbecues, summer parties | 220 |
        hedge trimmer, hedge cutter | trimmer, machine | tall hedges | 95 | 45 cm, 55 cm, 65 cm
        sun lounger, deck chair | chair, seat | sunbathing, hot days | 85 |
        *robot mower, robotic mower | mower, robot | large lawns, lazy sundays | 650 | 300 m2, 600 m2, 1000 m2
        """),
    "sports": ("""
        10 1.6
        neoprene, nylon, cork, foam/eva foam, steel/metal, carbon fibre/carbon fiber
        lightweight/light, foldable/folding, non slip/slip resistant, waterproof/rainproof, adjustable, inflatable
        1 kg, 2 kg, 5 kg, 10 kg
        Peakform, Vantor, Yogalis, Ironleaf, Trailhead, Cascade, Swiftly, Basecamp
        """, """
        yoga mat, exercise mat | mat | pilates, stretching | 35 | 3 mm, 5 mm, 8 mm
        dumbbells, hand weights | weights | home gym, strength training | 45 |
        tent, camping shelter | camping gear | camping, festivals | 180 | 2 person, 3 person, 4 person
        sleeping bag, mummy bag | bag, camping gear | camping, mountain trips | 85 |
        rucksack, backpack | bag | hiking, travelling | 80 | 20 l, 30 l, 50 l
        bicycle, bike | cycle | commuting, weekend tours | 600 | 26 inch, 28 inch, 29 inch
        cycling helmet, bike helmet | helmet | commuting, weekend tours | 60 | size S, size M, size L
        swimming goggles, swim glasses | goggles | swimming lessons, triathlon | 20 |
        exercise bike, spinning bike | bike, machine | home gym, cardio | 320 |
        *walking pad, under desk treadmill | treadmill, machine | home office, cardio | 300 |
        """),
    "beauty": ("""
        345 1.5
        aloe vera/aloe, shea butter/shea, argan oil/argan, charcoal/activated charcoal, rose water/rose,
        vitamin c/ascorbic
        fragrance free/unscented, vegan/plant based, for sensitive skin/hypoallergenic, organic/natural,
        long lasting/all day, travel size/mini
        30 ml, 50 ml, 100 ml, 250 ml
        Elvane, Puralis, Rosamund, Dermiq, Belleview, Saponi, Ocea, Nuit Claire
        """, """
        moisturiser, face cream | cream, skincare | dry skin, cold days | 28 |
        sunscreen, sun cream | cream, skincare | beach, hot days | 18 |
        shampoo, hair wash | haircare | dry hair, gym bag | 12 |
        conditioner, hair rinse | haircare | dry hair, curls | 13 |
        perfume, fragrance, eau de parfum | scent | gifts, parties | 65 |
        lipstick, lip colour | makeup | parties, weddings | 20 | 3 g, 4 g
        body lotion, body milk | cream, skincare | dry skin, after the beach | 15 |
        hair dryer, blow dryer | styling | curls, travelling | 60 | 1600 W, 2000 W, 2300 W
        face mask, sheet mask | skincare | lazy sundays, gifts | 10 |
        *scalp serum, hair growth serum | haircare, serum | thin hair, hair loss | 40 |
        """),
    "toys": ("""
        345 2.2
        wood/wooden, plush/soft fabric, plastic, cardboard, felt, magnetic/magnet
        educational/learning, battery free/no batteries, washable/machine washable, glow in the dark/glowing,
        for toddlers/from 18 months, multiplayer/for the family
        50 pieces, 100 pieces, 500 pieces, 1000 pieces
        Kiddora, Woodling, Playmere, Bramble, Tinkerlab, Puzzlewood, Happy Otter, Little Fox
        """, """
        building blocks, construction set | bricks | rainy days, creative play | 35 |
        jigsaw puzzle, puzzle | game | rainy days, quiet evenings | 18 |
        board game, family game | game | family evenings, holidays | 30 | 2 players, 4 players, 6 players
        teddy bear, stuffed animal, soft toy | cuddly toy | babies, gifts | 22 | 20 cm, 30 cm, 50 cm
        doll, dolly | figure | role play, gifts | 28 | 30 cm, 45 cm
        toy car, model car | vehicle | role play, sandpit | 15 |
        train set, toy railway | vehicle | christmas, creative play | 70 |
        kite, flying kite | outdoor toy | windy days, beach | 20 | 80 cm, 120 cm, 160 cm
        scooter, kick scooter | vehicle, outdoor toy | school trips, skate park | 75 |
        *coding robot, programmable robot | robot, vehicle | learning to code, gifts | 110 |
        """),
    "lighting": ("""
        300 1.5
        brass, glass, rattan/wicker, fabric/textile, steel/metal, paper/rice paper
        dimmable/with dimmer, rechargeable/battery powered, motion sensing/with motion sensor,
        warm white/warm light, colour changing/rgb, waterproof/outdoor
        5 W, 10 W, 20 W, 40 W
        Lucente, Halden, Brightwell, Glimmer, Ferrolume, Dusk and Dawn, Candela, Nordlys
        """, """
        desk lamp, reading lamp | lamp, light | home office, homework | 45 |
        floor lamp, standing lamp | lamp, light | living room, reading corner | 110 | 140 cm, 160 cm, 180 cm
        table lamp, bedside lamp | lamp, light | bedroom, cosy evenings | 50 |
        pendant light, hanging lamp | lamp, ceiling light | dining room, kitchen island | 95 | 30 cm, 40 cm, 60 cm
        fairy lights, string lights | light, decoration | christmas, parties | 20 | 5 m, 10 m, 20 m
        night light, nursery lamp | lamp, light | babies, dark hallways | 18 |
        torch, flashlight | light | camping, power cuts | 25 |
        spotlight, ceiling spot | light, ceiling light | kitchen island, dark hallways | 40 |
        light bulb, led bulb | bulb | replacing old bulbs | 9 |
        *sunrise lamp, wake up light | lamp, alarm clock | dark mornings, waking up | 85 |
        """),
}  # fmt: skip

# Words of the wave: all at once, many shoppers call these things so; no title does yet.
WAVE: Final = {
    "sofa": "cloud seat", "office chair": "focus throne", "coffee table": "slab", "wardrobe": "fit station",
    "trainers": "kicks", "running shoes": "super racers", "sandals": "flipsters", "loafers": "slippies",
    "earbuds": "pods", "headphones": "cans", "laptop": "ultrabook", "speaker": "boombox",
    "water bottle": "hydro tumbler", "coffee maker": "barista bar", "frying pan": "everything pan", "mug": "cuppa",
    "winter jacket": "puffer", "hoodie": "slouchy", "jumper": "chunky knit", "trousers": "barrels",
    "garden chair": "patio pod", "barbecue": "fire table", "plant pot": "grow bag", "parasol": "shade sail",
    "rucksack": "daypacker", "dumbbells": "adjustables", "bicycle": "gravel ride", "yoga mat": "flow deck",
    "moisturiser": "barrier balm", "perfume": "skin scent", "face mask": "glow patch", "shampoo": "scalp wash",
    "building blocks": "brixels", "teddy bear": "squishy", "scooter": "glider", "board game": "party deck",
    "floor lamp": "sunset lamp", "fairy lights": "aurora string", "desk lamp": "monitor bar", "torch": "pocket sun",
}  # fmt: skip
NEWCOMERS: Final = {  # makers that nobody had heard of before the wave
    "furniture": "Oblique", "shoes": "Zephyra", "electronics": "Nuvio", "kitchen": "Umamia", "clothing": "Kumo",
    "garden": "Mossley", "sports": "Kinetik", "beauty": "Dewy Lab", "toys": "Zoomi", "lighting": "Photonia",
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A kind of thing that is sold."""

    name: str
    synonyms: tuple[str, ...]
    shared: tuple[str, ...]  # words for several kinds
    uses: tuple[str, ...]
    price: float  # EUR, typical
    sizes: tuple[str, ...]  # "number unit", or "size L"
    new: bool  # comes with the wave
    wave: str | None  # what it is called then


@dataclass(frozen=True)
class Section:
    """What is particular to a category. Values are told with their forms: "grey/gray/charcoal"."""

    peak: int  # day of the year
    swing: float  # demand on that day, as a multiple of the mean
    materials: tuple[str, ...]
    features: tuple[str, ...]
    brands: tuple[str, ...]  # the last one comes with the wave
    kinds: tuple[Kind, ...]


@cache
def sections() -> dict[str, Section]:
    """By category."""
    return {category: _section(category, *told) for category, told in _SHOP.items()}


def _section(category: str, particulars: str, kinds: str) -> Section:
    when, materials, features, sizes, brands = re.sub(r",\s*\n", ", ", particulars.strip()).splitlines()
    peak, swing = when.split()
    return Section(
        peak=int(peak),
        swing=float(swing),
        materials=_list(materials),
        features=_list(features),
        brands=(*_list(brands), NEWCOMERS[category]),
        kinds=tuple(_kind(line, _list(sizes)) for line in kinds.strip().splitlines()),
    )


def _kind(line: str, usual_sizes: tuple[str, ...]) -> Kind:
    called, shared, uses, price, sizes = line.split("|")
    name, *synonyms = _list(called.replace("*", ""))
    own = _list(sizes) or usual_sizes
    new, wave = "*" in called, WAVE.get(name)
    return Kind(name, tuple(synonyms), _list(shared), _list(uses), float(price), own, new, wave)


def _list(line: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in line.split(",") if part.strip())


def forms(attribute: int, value: str) -> tuple[str, ...]:
    """How a value may be said, the first one as structured data says it."""
    return _of_size(value) if attribute == SIZE else tuple(value.split("/"))


def _of_size(value: str) -> tuple[str, ...]:
    """The same length, volume or weight in other units, and run together."""
    number, _, unit = value.partition(" ")
    match unit:
        case "cm":
            return value, number + "cm", f"{round(int(number) / 2.54)} inch"
        case "ml" if int(number) >= 100:
            return value, number + "ml", f"{int(number) / 1000:g} l"
        case "l":
            return value, number + "l", f"{int(number) * 1000} ml"
        case "kg":
            return value, number + "kg", f"{int(number) * 1000} g"
        case "inch" | "GB" | "W" | "m" | "mm" | "ml" | "mAh" | "h" | "g":
            return value, number + unit
        case "person" | "players" | "pieces":
            return value, f"{number} {unit.removesuffix('s')}s"
        case _:
            return (value,)


# Where fingers land instead (QWERTY).
_ROWS: Final = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


@cache
def neighbours() -> dict[str, str]:
    """By letter, those beside it and those above and below."""
    near: dict[str, str] = {}
    for r, row in enumerate(_ROWS):
        for i, letter in enumerate(row):
            beside = row[max(i - 1, 0) : i] + row[i + 1 : i + 2]
            above = _ROWS[r - 1][i : i + 2] if r else ""
            below = _ROWS[r + 1][max(i - 1, 0) : i + 1] if r < 2 else ""
            near[letter] = beside + above + below
    return near


def mistype(text: str, u: tuple[float, float, float]) -> str:
    """One slip in one word of at least four letters: a neighbour, two swapped, one left out, one doubled.

    u: three uniform numbers: which word, where in it, which slip. The text itself where no word is so long.
    """
    words = text.split(" ")
    long = [i for i, word in enumerate(words) if len(word) >= 4 and word.isalpha()]
    if not long:
        return text
    i = long[int(u[0] * len(long))]
    word = words[i]
    at = 1 + int(u[1] * (len(word) - 2))  # neither the first letter nor the last
    which = u[2] * 4
    near = neighbours().get(word[at].lower(), "e")
    slips = (
        word[:at] + near[int(which % 1 * len(near))] + word[at + 1 :],
        word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        word[:at] + word[at + 1 :],
        word[:at] + word[at] + word[at:],
    )
    words[i] = slips[int(which)]
    return " ".join(words)
