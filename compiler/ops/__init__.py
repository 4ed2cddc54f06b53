"""The operations, each declared once: shape rule, reference, gradient, lowering and cost."""
