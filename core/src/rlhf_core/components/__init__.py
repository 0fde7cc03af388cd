"""Small components that come with the core: prompt sources, demonstrations, function rewards, KL, metrics."""
