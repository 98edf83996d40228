"""What computes the networks: one protocol, OpenVINO, TensorRT and torch behind it, and the choice between them."""
