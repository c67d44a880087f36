"""Networks: trained, taken over from a file, and asked for soft labels."""
