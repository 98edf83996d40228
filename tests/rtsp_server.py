"""A real RTSP server for the tests: GStreamer's, run by the Python of the system, which has its bindings.

    /usr/bin/python3 tests/rtsp_server.py PORT PICTURES FPS [WIDTH HEIGHT]

Serves the JPEG pictures `PICTURES/%05d.jpg` in a loop as H.264 at rtsp://127.0.0.1:PORT/cage, one encoder for all
clients, and prints `ready`.
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402


def main() -> None:
    port, pictures, fps, *size = sys.argv[1:]
    scale = f"videoscale ! video/x-raw,width={size[0]},height={size[1]} !" if size else ""
    Gst.init(None)
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(
        f'( multifilesrc location="{pictures}/%05d.jpg" loop=true caps="image/jpeg,framerate={fps}/1" ! jpegdec !'
        f" videoconvert ! {scale} clocksync !"
        " x264enc tune=zerolatency speed-preset=ultrafast key-int-max=10 bitrate=2000 threads=1 !"
        " rtph264pay name=pay0 config-interval=-1 )"
    )
    factory.set_shared(True)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    server.get_mount_points().add_factory("/cage", factory)
    if server.attach(None) == 0:
        sys.exit(f"port {port} is taken")
    print("ready", flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main()
