"""Make the recordings of fixtures/media with espeak-ng, sox and ffmpeg: invented calls and screens, always the same.

Calls are what a recorder hands over: 8 kHz, 16 bits, two channels, customer left and agent right, taking turns.
"""

import array
import struct
import subprocess
import sys
import tempfile
import wave
from dataclasses import dataclass
from pathlib import Path

RATE = 8000
GAP = [0] * (RATE // 4)
LEFT, RIGHT = 0, 1
CUSTOMER, AGENT = LEFT, RIGHT
PROMPT, CALLER = LEFT, RIGHT  # of the leg before an agent answers


@dataclass(frozen=True)
class Turn:
    """One party says something; `text` of digits only is keyed on the telephone instead."""

    side: int
    voice: str
    text: str


CALLS: dict[str, list[Turn]] = {
    "call-parcel.wav": [
        Turn(AGENT, "en-gb+f3", "Acme parcels, how can I help?"),
        Turn(CUSTOMER, "en-us+m3", "My parcel has not come since Tuesday."),
        Turn(AGENT, "en-gb+f3", "I see it. It waits in Harbour Street."),
        Turn(CUSTOMER, "en-us+m3", "Then I will fetch it myself. Thank you."),
    ],
    "call-dentist.wav": [
        Turn(AGENT, "en-gb-x-rp+m7", "Borealis dental, we call about your visit."),
        Turn(CUSTOMER, "en-gb-scotland+f2", "Could we make it Friday at nine?"),
        Turn(AGENT, "en-gb-x-rp+m7", "Friday at nine it is."),
        Turn(CUSTOMER, "en-gb-scotland+f2", "Lovely. Goodbye now."),
    ],
    "ivr-parcel.wav": [
        Turn(PROMPT, "en-gb+f4", "For parcels press one."),
        Turn(CALLER, "", "1"),
        Turn(PROMPT, "en-gb+f4", "Your parcel number?"),
        Turn(CALLER, "", "4207"),
    ],
    "call-with-list-chunk.wav": [
        Turn(AGENT, "en-gb+f5", "You are through to billing."),
        Turn(CUSTOMER, "en-gb+m1", "I paid this twice."),
    ],
}

# Row and column tones of a telephone keypad, in Hz (ITU-T Q.23).
TONES = {key: (row, column)
         for row, keys in ((697, "123"), (770, "456"), (852, "789"), (941, "*0#"))
         for column, key in zip((1209, 1336, 1477), keys, strict=True)}  # fmt: skip

SCREEN = "{picture}=size=320x180:rate=5:duration=10,drawbox=x=8:y=8:w=180:h=28:color=white:t=fill"
BITEXACT = ("-map_metadata", "-1", "-fflags", "+bitexact", "-flags:v", "+bitexact", "-threads", "1")
CODEC = ("-c:v", "libx264", "-preset", "slow", "-crf", "33", "-g", "10", "-pix_fmt", "yuv420p")


def make_media(directory: Path) -> None:
    """Write every recording into `directory`."""
    for name, turns in CALLS.items():
        left, right = _conversation(turns)
        _write_wav(directory / name, left, right)
    _insert_list_chunk(directory / "call-with-list-chunk.wav")
    _write_wav(directory / "call-lost.wav", [], [])
    _screen(directory / "screen.mp4", "testsrc2", "parcel 4207", ())
    fragments = ("-movflags", "frag_keyframe+empty_moov+default_base_moof")
    _screen(directory / "screen-live.mp4", "testsrc", "friday 9", fragments)


def _conversation(turns: list[Turn]) -> tuple[list[int], list[int]]:
    sides: tuple[list[int], list[int]] = ([], [])
    for turn in turns:
        samples = [*(_keyed(turn.text) if turn.text.isdecimal() else _spoken(turn)), *GAP]
        sides[turn.side].extend(samples)
        sides[1 - turn.side].extend([0] * len(samples))
    return sides


def _spoken(turn: Turn) -> list[int]:
    with tempfile.TemporaryDirectory() as directory:
        spoken = f"{directory}/spoken.wav"
        _run("espeak-ng", "-v", turn.voice, "-s", "185", "-w", spoken, turn.text)
        return _samples(spoken, "lowpass", "3400", "silence", "1", "0.01", "1%")


def _keyed(digits: str) -> list[int]:
    samples: list[int] = []
    for digit in digits:
        row, column = TONES[digit]
        samples += _samples("-n", "synth", "0.12", "sine", str(row), "sine", str(column), "remix", "1,2", "gain", "-6")
        samples += [0] * (RATE // 10)
    return samples


def _samples(source: str, *effects: str) -> list[int]:
    raw = ("-t", "raw", "-r", str(RATE), "-c", "1", "-b", "16", "-e", "signed-integer", "-L", "-")
    # A source without a rate of its own takes the rate of the call.
    begin = ("-r", str(RATE), "-c", "2", source) if source == "-n" else (source,)
    samples = array.array("h", _run("sox", "-R", "-D", "-G", *begin, *raw, *effects))
    if sys.byteorder == "big":
        samples.byteswap()
    return samples.tolist()


def _write_wav(path: Path, left: list[int], right: list[int]) -> None:
    frames = b"".join(struct.pack("<hh", *pair) for pair in zip(left, right, strict=True))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(frames)


def _insert_list_chunk(path: Path) -> None:
    """Put a comment of odd length before the samples, as some recorders do."""
    data = path.read_bytes()
    comment = b"billing line, second floor."
    info = b"INFOICMT" + struct.pack("<I", len(comment)) + comment + b"\0"
    chunk = b"LIST" + struct.pack("<I", len(info)) + info
    head = b"RIFF" + struct.pack("<I", len(data) - 8 + len(chunk)) + data[8:36]
    path.write_bytes(head + chunk + data[36:])


def _screen(path: Path, picture: str, caption: str, container: tuple[str, ...]) -> None:
    drawing = f"{SCREEN.format(picture=picture)},drawtext=text='{caption}':x=14:y=14:fontsize=16:fontcolor=black"
    _run("ffmpeg", "-v", "error", "-y", "-f", "lavfi", "-i", drawing, *CODEC, *BITEXACT, *container, str(path))


def _run(*command: str) -> bytes:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
