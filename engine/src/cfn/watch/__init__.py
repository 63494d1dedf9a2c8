"""The watch: looks at every host each minute, judges what is due, and takes traffic back on FAIL.

It runs on the control host and reaches the others by SSH, with a key that may only run `cfn watched`
there. What a host lets it do is read, keep the ledger's head, and lower V2's traffic.
"""
