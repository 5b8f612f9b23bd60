"""How a MinT user's process finds its server and how the Tinker SDK is prepared for it.

    hook         prepares the SDK when it is first imported; gives its modules their `mint.` names
    namespace    the lazy names of `mint` and `mint.tinker`
    patches      the changes made to the SDK; knows its private modules
    discovery    which base URL and which key, from arguments, environment and the credentials file
    credentials  the credentials file that a running `mint serve` leaves for its user's clients
    pickling     how a pickled client prepares the SDK in the process that loads it
    tokenizers   tokenizers of models that only the server has
    submission   sends operations of MinT's own through the SDK's clients; knows their private parts

Nothing else knows private parts of the SDK but `patches`, `submission` and `tokenizers`.
Must not import the server, the engine or torch.
"""
