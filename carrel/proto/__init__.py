"""Message types of the gRPC and ttrpc protocols, and the transports that carry them."""
