"""The proof: instruments that try to make the gateway lose an acknowledged image, and what they found (`make proof`)."""
