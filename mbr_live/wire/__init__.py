"""Messages between processes, over ZeroMQ. The only package that knows about sockets."""
