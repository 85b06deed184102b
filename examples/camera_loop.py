"""Code every frame of a camera or a video within a byte budget; show or save what comes back.

    python examples/camera_loop.py --source 0 --box 200,100,256,256 --max-bytes 800 --show
    python examples/camera_loop.py --source clip.avi --save decoded.avi
    python examples/camera_loop.py --source clip.avi --save frames/ --frames 10

A directory gets one coded file (.fsd) and one decoded picture (.png) for each frame.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cv2

from fasdiff_edge import Decoder, Encoder, FasdiffError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", default="0", help="camera index or video file (0)")
    parser.add_argument("--box", help="x,y,w,h: code this part of the frame, in pixels")
    parser.add_argument("--max-bytes", type=int, default=800, help="for each frame (800)")
    parser.add_argument("--frames", type=int, default=0, help="stop after so many (never)")
    parser.add_argument("--show", action="store_true", help="in a window; q ends")
    parser.add_argument("--save", type=Path, help="an .avi or .mp4 to write, or a directory")
    args = parser.parse_args()

    capture = cv2.VideoCapture(int(args.source) if args.source.isdigit() else args.source)
    if not capture.isOpened():
        sys.exit(f"cannot open {args.source}")
    codec: tuple[Encoder, Decoder] | None = None
    video = None
    count = 0
    while not args.frames or count < args.frames:
        ok, frame = capture.read()
        if not ok:
            break
        if args.box:
            x, y, width, height = map(int, args.box.split(","))
            frame = frame[y : y + height, x : x + width]
        try:
            if codec is None:
                # all frames have one size: the networks may be compiled for it
                size = (frame.shape[0], frame.shape[1])
                codec = Encoder(size=size), Decoder(size=size)
            encoder, decoder = codec
            data = encoder.encode(frame[:, :, ::-1], max_bytes=args.max_bytes)  # BGR to RGB
        except FasdiffError as error:
            sys.exit(f"frame {count}: {error}")
        decoded = cv2.cvtColor(decoder.decode(data), cv2.COLOR_RGB2BGR)
        print(f"frame {count}: {len(data)} bytes", flush=True)
        if args.save and args.save.suffix in (".avi", ".mp4"):
            if video is None:
                fourcc = cv2.VideoWriter.fourcc(*("MJPG" if args.save.suffix == ".avi" else "mp4v"))
                rate = capture.get(cv2.CAP_PROP_FPS) or 25.0
                video = cv2.VideoWriter(str(args.save), fourcc, rate, decoded.shape[1::-1])
            video.write(decoded)
        elif args.save:
            args.save.mkdir(parents=True, exist_ok=True)
            (args.save / f"{count:05}.fsd").write_bytes(data)
            cv2.imwrite(str(args.save / f"{count:05}.png"), decoded)
        if args.show:
            cv2.imshow("FaSDiff-Edge", decoded)
            if cv2.waitKey(1) == ord("q"):
                break
        count += 1
    capture.release()
    if video is not None:
        video.release()
    return 0 if count else 1


if __name__ == "__main__":
    sys.exit(main())
