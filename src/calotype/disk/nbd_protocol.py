"""The numbers of the NBD protocol: fixed newstyle, structured replies. Client and server share them."""

from typing import Final

MAGIC: Final = b"NBDMAGIC"
OPTION_MAGIC: Final = b"IHAVEOPT"
OPTION_REPLY_MAGIC: Final = 0x0003E889045565A9
REQUEST_MAGIC: Final = 0x25609513
STRUCTURED_MAGIC: Final = 0x668E33EF

FIXED_NEWSTYLE: Final = 1
NO_ZEROES: Final = 2

FLAG_HAS_FLAGS: Final = 1
FLAG_READ_ONLY: Final = 2
FLAG_MULTI_CONN: Final = 1 << 8

OPT_ABORT: Final = 2
OPT_LIST: Final = 3
OPT_INFO: Final = 6
OPT_GO: Final = 7
OPT_STRUCTURED_REPLY: Final = 8
OPT_LIST_META_CONTEXT: Final = 9
OPT_SET_META_CONTEXT: Final = 10

REP_ACK: Final = 1
REP_SERVER: Final = 2
REP_INFO: Final = 3
REP_META_CONTEXT: Final = 4
REP_ERROR: Final = 1 << 31
REP_ERROR_UNSUPPORTED: Final = REP_ERROR | 1
REP_ERROR_POLICY: Final = REP_ERROR | 2
REP_ERROR_INVALID: Final = REP_ERROR | 3
REP_ERROR_UNKNOWN: Final = REP_ERROR | 6

INFO_EXPORT: Final = 0
INFO_BLOCK_SIZE: Final = 3

CMD_READ: Final = 0
CMD_DISC: Final = 2
CMD_BLOCK_STATUS: Final = 7

REPLY_NONE: Final = 0
REPLY_DATA: Final = 1
REPLY_HOLE: Final = 2
REPLY_STATUS: Final = 5
REPLY_ERROR: Final = (1 << 15) | 1
DONE: Final = 1  # the flag of the last chunk of a reply

STATE_HOLE: Final = 1
STATE_ZERO: Final = 2

ALLOCATION: Final = "base:allocation"
