"""The parts of guidance_ranking.py: laws, methods, measures, tables, pictures, and the same on trained networks."""
