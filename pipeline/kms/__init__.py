"""The key server: the AWS KMS API for machines without AWS, and for tests.

In: signed `TrentService` calls (AWS JSON 1.1 over HTTP, loopback by default). Out: AWS' answers and AWS' errors.
On disk: `keys.sqlite` (keys, key policies, grants, aliases; key material only sealed under the root key) and `trail/`
(one CloudTrail-shaped record per call). The root key comes from elsewhere: `rootkey`.

    http call -> signature (who) -> operations (what) -> access (may they) -> vault (keys) -> trail -> answer

It is no hardware module: whoever is root on this machine can read the process's memory, and keys with it.
"""
