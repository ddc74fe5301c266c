"""What computes the answers of admitted requests, and which requests are computed together."""
