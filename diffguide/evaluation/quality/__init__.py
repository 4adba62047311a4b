"""Sample quality: features, distances, precision and recall, copies, label agreement."""
