"""What tests share: small runs, tiny models, real stores and the faults that befall them."""
