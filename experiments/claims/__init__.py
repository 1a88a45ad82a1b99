"""The paper's claims, each measured by this code at the miniature's scale and shown on one page.

A row of the page is one claim: what the paper says, what measures it here, what must be seen.
"""
