"""What a run starts from: settings of weights and data, weights, features."""
