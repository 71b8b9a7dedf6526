"""Keep contact-centre recordings safe until they are in their tenant's own bucket.

The journey of a recording, and where its code lives:

1. `intake`    media and events come in; each caller is one instance (tenant).
2. `crypt`     every byte is sealed under that instance's data key; no plaintext beyond this point.
3. `interim`   sealed segments are appended and synced; the state of an artifact is in its file's name.
4. `delivery`  opened, put into the instance's bucket with SSE-KMS, verified; only a receipt lets the bytes go.
5. `audit`     one record for every key use and every move, durable before it counts.

`kms` is a key server for machines without AWS, `adapters` what speaks to disks and services.
"""
