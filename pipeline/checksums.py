"""How S3 writes a checksum. Pure."""

import base64


def checksum_text(crc64nvme: int) -> str:
    """Write a CRC64NVME: base64 of its eight bytes, big endian."""
    return base64.b64encode(crc64nvme.to_bytes(8, "big")).decode()
