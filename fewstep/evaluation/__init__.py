"""From a model to numbers: samplers, archives of images, features, and the metrics of a protocol."""
