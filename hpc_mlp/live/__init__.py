"""What a person sees while runs are trained, here or in jobs. No torch."""
