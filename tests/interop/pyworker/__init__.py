"""A signvote worker in Python: the worked example of docs/wire_format.md, "A worker in another language".

It knows only what that page, the .proto files and the pages on models and data say; nothing here is shared with the
C++ programs, so that a page that does not suffice shows as a run that does not end with equal replicas. The protocol was
written from the page and the .proto files alone, before a look at the C++ code; names of the model's tensors and the
synthetic data stood on no page then and were taken from the code into the pages first. What it trains is real: the `mlp` model on the synthetic classification task, its gradients by numpy. Their last bits differ from those of
LibTorch, as those of any two machines may: ballots are opinions, and only what follows the vote must agree to the bit.

    bits, coins, checksums, layout, apply, replica    what must be computed exactly as everybody else does
    data, mlp, direction, trainer                     what is this worker's own affair: minibatch, gradient, what it signs
    messages, security, stream, session               the protocol
    __main__                                          flags, exit codes, report

Readable rather than fast: a ballot is packed whole and then cut into chunks, while the C++ worker sends chunks during
the backward pass.
"""
