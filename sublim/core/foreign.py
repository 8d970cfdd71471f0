"""Files that are no data: what file managers, network file systems and sync programs put into other folders."""

import re

# macOS; Windows; NFS, FUSE and Samba for files deleted while open; Synology and QNAP; Linux desktops; Syncthing.
_FOREIGN = re.compile(
    r"\.ds_store|\._.+|\.appledouble|\.appledb|\.apdisk|\.fseventsd|\.spotlight-v100|\.temporaryitems|\.trashes"
    r"|thumbs\.db|ehthumbs\w*\.db|desktop\.ini|\$recycle\.bin|system volume information"
    r"|\.nfs[0-9a-f]{8,}|\.fuse_hidden[0-9a-f]+|\.smbdelete.+"
    r"|@eadir|#recycle|@recycle|\.@__thumb|\.snapshot|lost\+found"
    r"|\.directory|\.trash-\d+|\.goutputstream-\w+|\.~lock\..+#"
    r"|\.stfolder|\.syncthing\..+\.tmp",
    re.IGNORECASE,
)


def is_foreign(name: str) -> bool:
    """Whether a file or folder with this name was made by such a program and not by a stage or a user."""
    return _FOREIGN.fullmatch(name) is not None
