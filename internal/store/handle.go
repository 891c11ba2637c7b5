package store

import (
	"os"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
)

// A handle is a bbolt file that stays open between transactions, because
// opening it costs as much as the rest of one. bbolt believes that nobody else
// writes while it has a file open, but here every process may: so bbolt's lock
// on the file is given back after each transaction, and the next one looks
// whether what bbolt has in memory still holds.
type handle struct {
	f        *os.File
	db       *bolt.DB
	info     os.FileInfo // which file it is
	writable bool
	// If writable: the transaction whose list of free pages is in memory, and
	// when the file was written last. A file that is restored from a copy may
	// come to have the same number again, and other pages free.
	last  int
	wrote time.Time
}

// patience is how long a foreign program may keep a file.
const patience = 10 * time.Second

// resume readies the handle for one more transaction on the file that info is
// of. It reports whether it can be used.
func (h *handle) resume(info os.FileInfo, writable bool) (bool, error) {
	if !os.SameFile(h.info, info) || writable && !h.writable {
		return false, nil
	}
	how := unix.LOCK_SH
	if writable {
		how = unix.LOCK_EX
	}
	for start := time.Now(); ; time.Sleep(patience / 200) {
		err := flock(h.f, how|unix.LOCK_NB)
		if err == nil {
			break
		}
		if err != unix.EWOULDBLOCK {
			return false, os.NewSyscallError("flock", err)
		}
		if time.Since(start) > patience {
			return false, bolterrors.ErrTimeout
		}
	}
	look, err := h.db.Begin(false)
	if err != nil {
		return false, err
	}
	defer look.Rollback()
	// More may be in the file by now than is mapped.
	same := look.ID() == h.last && info.ModTime().Equal(h.wrote)
	return look.Size() <= h.info.Size() && (!writable || same), nil
}

func (h *handle) close() {
	if h != nil && h.db != nil {
		h.db.Close() // best effort: all that counts is written
	}
}

func flock(f *os.File, how int) error { return (&lock{int(f.Fd())}).flock(how) }
