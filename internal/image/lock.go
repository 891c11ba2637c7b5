package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// The locks of a store, in the order in which they are taken. A layer's own
// lock (the hex digits of its digest) comes between hold and index.
const (
	// lockStore is shared by whoever makes or reads blobs and layers, and had
	// alone by whoever removes them.
	lockStore = "store"
	// lockHold is shared by whoever records that an image is used, and had
	// alone by whoever takes images out of the index.
	lockHold = "hold"
	// lockIndex is had alone by whoever replaces index.json.
	lockIndex = "index"
)

// errHeld says that a lock is not free.
var errHeld = errors.New("held by another process")

// lock waits for a lock of the store. It is let go by the kernel if the
// process dies.
func (s *Store) lock(ctx context.Context, name string, how int) (unlock func(), err error) {
	f, err := s.lockFile(name)
	if err != nil {
		return nil, err
	}
	unlock = func() { f.Close() }
	if err := flock(f, how|unix.LOCK_NB); err == nil {
		return unlock, nil
	} else if !errors.Is(err, unix.EWOULDBLOCK) {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	got := make(chan error, 1)
	go func() { got <- flock(f, how) }()
	select {
	case err := <-got:
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		return unlock, nil
	case <-ctx.Done():
		go func() { <-got; f.Close() }() // flock cannot be called off
		return nil, fmt.Errorf("lock %s: %w", f.Name(), ctx.Err())
	}
}

// tryLock takes a lock if it is free; else it returns errHeld.
func (s *Store) tryLock(name string, how int) (unlock func(), err error) {
	f, err := s.lockFile(name)
	if err != nil {
		return nil, err
	}
	if err := flock(f, how|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = errHeld
		}
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return func() { f.Close() }, nil
}

func (s *Store) lockFile(name string) (*os.File, error) {
	path := filepath.Join(s.dir, "locks", name)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		if err = s.prepare(); err == nil {
			f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		}
	}
	return f, err
}

func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); err != unix.EINTR {
			return err
		}
	}
}
