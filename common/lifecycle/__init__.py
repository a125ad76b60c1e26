"""What happens to a model: trained, judged, published; the world it lives in."""
