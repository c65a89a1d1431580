"""Pure functions on boxes, anchors and masks: no weights, no state, nothing from further down the package."""
