"""Small components that come with the core: prompts, demonstrations, records, function rewards, mixes, KL, metrics."""
