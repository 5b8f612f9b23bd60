"""How a MinT user's process finds its server and how the Tinker SDK is prepared for it.

    hook         prepares the SDK when it is first imported; gives its modules their `mint.` names
    namespace    the lazy names of `mint` and `mint.tinker`
    patches      the changes made to the SDK; the only file that knows its private modules
    discovery    which base URL and which key, from arguments, environment and the credentials file
    credentials  the credentials file that a running `mint serve` leaves for its user's clients
    pickling     how a pickled client prepares the SDK in the process that loads it

Must not import the server, the engine or torch.
"""
