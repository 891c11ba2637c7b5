package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"berth"

	"golang.org/x/sys/unix"
)

// A LockKind says what a lock of [Store.Lock] is for. Locks are taken in this
// order.
type LockKind int

// The kinds of locks in the order in which they must be taken.
const (
	LockContainer LockKind = iota
	LockHost
	LockNetwork
	LockSandbox
)

// Lock waits for a lock that processes share, and returns what gives it back.
// It is not the lock of a transaction: it is held while the kernel changes.
// The id of the host's lock is empty. It returns the context's error if that
// ends first.
func (s *Store) Lock(ctx context.Context, kind LockKind, id string, exclusively bool) (unlock func(), err error) {
	path, err := s.lockFile(kind, id)
	if err != nil {
		return nil, err
	}
	m := shared | create
	if exclusively {
		m = exclusive | create
	}
	held, err := acquire(ctx, path, m)
	if errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return nil, err
		}
		held, err = acquire(ctx, path, m)
	}
	if err != nil {
		return nil, fmt.Errorf("wait for lock %s: %w", path, err)
	}
	return sync.OnceFunc(held.release), nil
}

// Forget removes the file of a lock whose object is gone. If somebody holds
// the lock it stays: that is never wrong, just an empty file.
func (s *Store) Forget(kind LockKind, id string) error {
	path, err := s.lockFile(kind, id)
	if err != nil {
		return err
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		if err == unix.ENOENT {
			return nil
		}
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	held := &lock{fd}
	defer held.release()
	// Who waits for this file finds it gone from its name and takes the next.
	if held.flock(unix.LOCK_EX|unix.LOCK_NB) != nil || !held.named(path) {
		return nil
	}
	return os.Remove(path)
}

func (s *Store) lockFile(kind LockKind, id string) (string, error) {
	switch kind {
	case LockContainer:
		return filepath.Join(s.run.dir, "locks", "c-"+fileName(id)), nil
	case LockHost:
		return filepath.Join(s.run.dir, "locks", "host"), nil
	case LockNetwork:
		return filepath.Join(s.run.dir, "locks", "n-"+fileName(id)), nil
	case LockSandbox:
		return filepath.Join(s.run.dir, "locks", "s-"+fileName(id)), nil
	}
	return "", fmt.Errorf("lock of kind %d: %w", kind, berth.ErrInvalid)
}

// fileName is an id as part of a file name: itself if it can be.
func fileName(id string) string {
	plain := func(r rune) bool {
		return r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || strings.ContainsRune("-_.", r)
	}
	if len(id) <= 200 && strings.IndexFunc(id, func(r rune) bool { return !plain(r) }) < 0 {
		return id
	}
	sum := sha256.Sum256([]byte(id))
	return "+" + hex.EncodeToString(sum[:]) // no plain id begins like this
}

type mode int

const (
	shared mode = iota
	exclusive
	create mode = 2 // or'ed: make the file if there is none
)

// A lock is an open file with a flock. It ends with the process.
type lock struct{ fd int }

// acquire waits for the lock of a file. Without create it returns an error
// that matches [os.ErrNotExist] if there is no file.
func acquire(ctx context.Context, path string, m mode) (*lock, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		flags := unix.O_RDWR | unix.O_CLOEXEC
		if m&create != 0 {
			flags |= unix.O_CREAT
		}
		fd, err := unix.Open(path, flags, 0o600)
		gated := err == nil
		if err == unix.EROFS || err == unix.EACCES {
			fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		}
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: path, Err: err}
		}
		l := &lock{fd}
		if err := l.wait(ctx, m, gated); err != nil {
			return nil, err
		}
		if l.named(path) {
			return l, nil
		}
		l.release() // forgotten while we waited; it has a new file
	}
}

// wait takes the flock, or closes the file.
//
// flock(2) lets readers pass a waiting writer for as long as there is always
// one of them. So each first goes through a gate, an open-file-description
// lock on the same file (fcntl(2); the two kinds do not see each other), and
// holds it while it waits. A file that can only be read has no gate.
func (l *lock) wait(ctx context.Context, m mode, gated bool) error {
	how := unix.LOCK_SH
	if m&exclusive != 0 {
		how = unix.LOCK_EX
	}
	if !gated || l.gate(unix.F_OFD_SETLK, unix.F_WRLCK) == nil {
		err := l.flock(how | unix.LOCK_NB)
		if gated {
			l.gate(unix.F_OFD_SETLK, unix.F_UNLCK)
		}
		if err == nil {
			return nil
		}
		if err != unix.EWOULDBLOCK {
			l.release()
			return os.NewSyscallError("flock", err)
		}
	}
	done := make(chan error, 1)
	go func() {
		if gated {
			if err := l.gate(unix.F_OFD_SETLKW, unix.F_WRLCK); err != nil {
				done <- os.NewSyscallError("fcntl", err)
				return
			}
		}
		err := l.flock(how)
		if gated {
			l.gate(unix.F_OFD_SETLK, unix.F_UNLCK)
		}
		done <- os.NewSyscallError("flock", err)
	}()
	select {
	case err := <-done:
		if err != nil {
			l.release()
		}
		return err
	case <-ctx.Done():
		// Nothing ends a flock(2) that waits, not even closing the file: it
		// gets the lock in the end and gives it back at once.
		go func() {
			<-done
			l.release()
		}()
		return ctx.Err()
	}
}

func (l *lock) flock(how int) error {
	for {
		if err := unix.Flock(l.fd, how); err != unix.EINTR {
			return err
		}
	}
}

func (l *lock) gate(cmd int, kind int16) error {
	for {
		if err := unix.FcntlFlock(uintptr(l.fd), cmd, &unix.Flock_t{Type: kind}); err != unix.EINTR {
			return err
		}
	}
}

// named reports whether path still leads to the locked file.
func (l *lock) named(path string) bool {
	var mine, its unix.Stat_t
	return unix.Fstat(l.fd, &mine) == nil && unix.Stat(path, &its) == nil && mine.Ino == its.Ino && mine.Dev == its.Dev
}

// release gives the lock back. It does so in words: a child between fork and
// exec has a copy of the open file, and the lock would live as long as that.
func (l *lock) release() {
	if l != nil {
		l.flock(unix.LOCK_UN)
		unix.Close(l.fd)
	}
}
