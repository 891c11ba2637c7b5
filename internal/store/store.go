// Package store keeps what is wanted of a host on disk, for any number of
// processes at once.
//
// Networks are in ROOT/berth.db and survive a reboot. Sandboxes, endpoints,
// ports and addresses are in RUN/berth.db, on a tmpfs, so a reboot forgets
// exactly what the kernel forgot. Both are bbolt files; one flock on RUN/lock
// guards them, and is held for one transaction only.
//
// A damaged file, or one of a newer Berth, is an error and never replaced.
// Package store knows nothing of the kernel.
package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"

	"berth"
)

// A Store is the place of two files. Any number of goroutines and processes may
// use one.
type Store struct {
	root, run layout
	host      Host

	// current says that this Store has seen both files in this schema, so a
	// View need not look at the one it does not read.
	current atomic.Bool
}

// A Host is the network namespace a run store belongs to.
type Host struct {
	BootID string // /proc/sys/kernel/random/boot_id
	Cookie uint64 // SO_NETNS_COOKIE
}

// Open returns the store in two directories, which need not exist yet: the
// first Update makes them. It touches neither.
func Open(root, run string, host Host) (*Store, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	if run, err = filepath.Abs(run); err != nil {
		return nil, err
	}
	return &Store{
		root: layout{dir: root, name: "root", sync: true, reserve: true, steps: rootSteps, idle: new(atomic.Pointer[handle])},
		run:  layout{dir: run, name: "run", reserve: true, steps: runSteps, idle: new(atomic.Pointer[handle])},
		host: host,
	}, nil
}

// Close closes the files. A Store that is used again opens them again.
func (s *Store) Close() {
	s.root.idle.Swap(nil).close()
	s.run.idle.Swap(nil).close()
}

func (s *Store) lockPath() string { return filepath.Join(s.run.dir, "lock") }

// View calls fn with a transaction that reads both files at one moment. It
// makes no file and no directory: a host without a store has an empty one.
func (s *Store) View(ctx context.Context, fn func(*Tx) error) error {
	if !s.current.Load() {
		if err := s.migrate(ctx); err != nil {
			return err
		}
	}
	return s.view(ctx, fn)
}

func (s *Store) view(ctx context.Context, fn func(*Tx) error) error {
	for {
		held, err := acquire(ctx, s.lockPath(), shared)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("lock the store %s: %w", s.run.dir, err)
		}
		tx := &Tx{s: s}
		again := false
		err = tx.guard(func() error {
			if held != nil {
				if err := tx.openRun(); err != nil {
					return err
				}
				return fn(tx)
			}
			// Nobody has written since the boot, so there is no run store. The
			// lock of the open file keeps the first writer waiting.
			if err := tx.openRoot(); err != nil {
				return err
			}
			if _, err := os.Lstat(s.lockPath()); err == nil {
				again = true // it came before us after all
				return nil
			}
			return fn(tx)
		})
		held.release()
		if !again {
			return err
		}
	}
}

// Update calls fn with a transaction that may write. If fn returns nil, all it
// wrote is kept, else nothing. The network file commits before the run file,
// or behind it if networks were only deleted: a crash between leaves a network
// that nothing is connected to, which is harmless.
//
// An Update that adds no record works on a full disk.
func (s *Store) Update(ctx context.Context, fn func(*Tx) error) error {
	held, err := acquire(ctx, s.lockPath(), exclusive)
	if errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(s.run.dir, 0o700); err != nil {
			return err
		}
		held, err = acquire(ctx, s.lockPath(), exclusive|create)
	}
	if err != nil {
		return fmt.Errorf("lock the store %s: %w", s.run.dir, err)
	}
	defer held.release()
	tx := &Tx{s: s, writable: true}
	return tx.guard(func() error {
		if err := tx.openRun(); err != nil {
			return err
		}
		if err := fn(tx); err != nil {
			return err
		}
		return tx.commit()
	})
}

// migrate brings files of an older schema forward, once in the life of s:
// View cannot, and fn of a View must not run twice.
func (s *Store) migrate(ctx context.Context) error {
	err := s.view(ctx, func(tx *Tx) error { return tx.openRoot() })
	if errors.Is(err, errOldSchema) {
		err = s.Update(ctx, func(tx *Tx) error {
			if exists(s.root.path()) {
				return tx.openRootToWrite()
			}
			return nil
		})
	}
	if err == nil {
		s.current.Store(true)
	}
	return err
}

// Copy returns a private copy of the store in dir, for trying things out: it
// has files and locks of its own, and nothing of s is changed or made. What is
// wrong with s is wrong with its copy: the first use says so.
func (s *Store) Copy(dir string) (*Store, error) {
	c, err := Open(filepath.Join(dir, "root"), filepath.Join(dir, "run"), s.host)
	if err != nil {
		return nil, err
	}
	c.root.sync, c.root.reserve, c.run.reserve = false, false, false
	c.root.steps, c.run.steps = s.root.steps, s.run.steps
	for done := false; !done; {
		if done, err = s.copyTo(c); err != nil {
			return nil, fmt.Errorf("copy the store: %w", err)
		}
	}
	return c, nil
}

// copyTo copies the files to where c has them. It is not done if the first
// writer came between.
func (s *Store) copyTo(c *Store) (done bool, err error) {
	ctx := context.Background()
	held, err := acquire(ctx, s.lockPath(), shared)
	if errors.Is(err, os.ErrNotExist) {
		// There is no run store. bbolt's own lock keeps the first writer off
		// the other file.
		held, err = acquire(ctx, s.root.path(), shared)
		if exists(s.lockPath()) {
			held.release()
			return false, nil
		}
		if errors.Is(err, os.ErrNotExist) {
			return true, nil
		}
	}
	if err != nil {
		return false, err
	}
	defer held.release()
	err = errors.Join(copyFile(c.root, s.root), copyFile(c.run, s.run))
	if err == nil && exists(c.run.path()) {
		// Without its lock, a run store is taken for none (view).
		err = os.WriteFile(c.lockPath(), nil, 0o600)
	}
	return true, err
}

func copyFile(to, from layout) error {
	b, err := os.ReadFile(from.path())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := os.MkdirAll(to.dir, 0o700); err != nil {
		return err
	}
	return os.WriteFile(to.path(), b, 0o600)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// foreign is the error for a run store of another namespace.
func (s *Store) foreign(cookie uint64) error {
	return fmt.Errorf("run store %s belongs to another network namespace (%d, this is %d): %w: give --run (BERTH_RUN)",
		s.run.dir, cookie, s.host.Cookie, berth.ErrConflict)
}
