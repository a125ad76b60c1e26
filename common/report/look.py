"""How a page looks: colours that colour-blind people can tell apart, on a light and a dark ground, and on paper."""

# name: (light, dark); pictures are drawn in the light ones, which stand for the names
PALETTE = {
    "surface": ("#fdfdfc", "#14171a"),
    "ink": ("#1c2228", "#e7e9eb"),
    "muted": ("#59636d", "#a0aab3"),
    "grid": ("#e2e6e9", "#2b3137"),
    "hatch": ("#b3bac1", "#545e68"),
    "blue": ("#0b69a8", "#66b7ea"),
    "orange": ("#c24d0a", "#f59b5d"),
    "saved": ("#d8e9f5", "#1b3547"),
    "lost": ("#fbe5d6", "#472a18"),
    "band": ("#e9edf0", "#272e34"),
    "inner": ("#a9cfe9", "#2a5875"),
    "heat0": ("#eff2f4", "#1f252a"),
    "heat1": ("#d9e0e5", "#2d363d"),
    "heat2": ("#b9c5ce", "#44515b"),
    "heat3": ("#f5bf92", "#8d4a1b"),
    "heat4": ("#df7b36", "#cf7231"),
    "heat5": ("#973b05", "#ffc594"),
}
LIGHT = {name: light for name, (light, _) in PALETTE.items()}
_VARIABLES = tuple(";".join(f"--{name}:{pair[i]}" for name, pair in PALETTE.items()) for i in (0, 1))

CSS = (
    f"""
:root {{ color-scheme: light dark; --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial,
  "Liberation Sans", sans-serif; {_VARIABLES[0]} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {_VARIABLES[1]} }} }}
"""
    + """
* { box-sizing: border-box }
html { background: var(--surface); color: var(--ink); font: 16px/1.5 var(--sans); -webkit-text-size-adjust: 100% }
body { margin: 0 auto; max-width: 1088px; padding: 48px 24px 64px; overflow-wrap: anywhere }
h1 { font-size: clamp(26px, 4vw, 38px); line-height: 1.15; letter-spacing: -.015em; margin: 4px 0 16px;
  max-width: 24em; text-wrap: balance }
h2 { font-size: 21px; line-height: 1.3; letter-spacing: -.005em; margin: 2px 0 6px; text-wrap: balance }
.kicker { color: var(--muted); font-size: 13px; font-weight: 600; margin: 0 }
.lead { font-size: 18px; margin: 0 0 8px; max-width: 44em }
.how { color: var(--muted); font-size: 14px; margin: 0 0 14px; max-width: 62em }
section { border-top: 1px solid var(--grid); margin-top: 40px; padding-top: 20px }
.figures { display: grid; gap: 0 32px; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); margin: 32px 0 0 }
dl.figures > div { border-top: 2px solid var(--ink); padding: 10px 0 18px }
.figures dt { color: var(--muted); font-size: 14px }
.figures dd { margin: 0 }
.figures .value { font-size: 30px; font-weight: 600; letter-spacing: -.015em; line-height: 1.25 }
.figures .note { color: var(--muted); font-size: 14px; line-height: 1.4 }
figure { margin: 0 }
.wide { overflow-x: auto; overflow-wrap: normal }
svg { display: block; height: auto; min-width: 720px; width: 100% }
.missing { background: repeating-linear-gradient(135deg, transparent 0 5px, var(--grid) 5px 6px); color: var(--muted) }
p.missing, p.none { border: 1px solid var(--grid); margin: 8px 0 0; padding: 20px }
.none { color: var(--muted) }
.value.missing { display: inline-block; padding: 0 10px }
.missing b, .missing span { background: var(--surface); padding: 1px 5px }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; min-width: 100% }
th { color: var(--muted); font-weight: 600; white-space: nowrap }
th, td { border-bottom: 1px solid var(--grid); padding: 8px 20px 8px 0; text-align: left; vertical-align: top }
td { max-width: 30em; min-width: 5em }
th.number, td.number { min-width: 0; text-align: right; white-space: nowrap }
.good { color: var(--blue); font-weight: 600 } .bad { color: var(--orange); font-weight: 600 }
footer { color: var(--muted); font-size: 13px; margin-top: 40px }
@media (max-width: 560px) { body { padding: 24px 16px 40px } .lead { font-size: 16px }
  .figures { grid-template-columns: 1fr 1fr; gap: 0 16px } .figures .value { font-size: 22px } }
@media print { :root { --surface: #fff } html { font-size: 12px } body { max-width: none; padding: 0 }
  .figures { grid-template-columns: repeat(4, 1fr); gap: 0 16px } .figures .value { font-size: 22px }
  section { break-inside: avoid; margin-top: 20px; padding-top: 12px }
  #versions, #alarms, #events { break-inside: auto } tr { break-inside: avoid }
  svg { min-width: 0 } .wide { overflow: visible } * { print-color-adjust: exact; -webkit-print-color-adjust: exact } }
"""
)
