"""Programs of the SDK's users, one for each capability; they run unchanged with every version of the SDK.

They import nothing of MinT and use public names of the SDK alone, and ask for one that not all versions have with
`hasattr`. `main` returns when all is well; it raises `Absent` where the capability is not there to be had.
"""
