"""Letters, delivered and waiting."""

from calotype.guest.steps.step import Concern, clearing

STEP = clearing(
    name="mail",
    heading="Mailboxes and mail queues",
    order=580,
    concern=Concern.TRACE,
    remove=(
        "/var/spool/postfix/active/*",
        "/var/spool/postfix/deferred/*",
        "/var/spool/postfix/incoming/*",
        "/var/spool/postfix/maildrop/*",
        "/var/spool/postfix/hold/*",
        "/var/spool/postfix/bounce/*",
        "/var/spool/postfix/corrupt/*",
        "/var/spool/postfix/defer/*",
        "/var/spool/exim4/input/*",
        "/var/spool/exim4/msglog/*",
        "/var/spool/mqueue/*",
        "/var/spool/clientmqueue/*",
        "/var/spool/nullmailer/queue/*",
    ),
    empty=(
        "/var/mail/*",
        "/var/spool/mail/*",
    ),
)
