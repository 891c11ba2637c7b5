package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"

	"berth/internal/crash"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
)

// A layout is where a file is and how it came to look as it does.
type layout struct {
	dir     string
	name    string // for crash points
	sync    bool
	reserve bool
	// steps bring a file forward: step i makes schema i+1 of schema i. The
	// first makes a new file's buckets. A step is never changed once it was
	// released.
	steps []func(*bolt.Tx) error
	idle  *atomic.Pointer[handle] // kept open between transactions
}

func (l layout) path() string { return filepath.Join(l.dir, "berth.db") }

// Names of buckets. The bucket about is in both files, with the keys below.
var (
	about        = []byte("about")
	meta         = []byte("meta")
	networks     = []byte("networks")
	networkNames = []byte("network-names")
	containers   = []byte("containers")
	containerIDs = []byte("container-names")
	runs         = []byte("runs") // in the run store, by container
	sandboxes    = []byte("sandboxes")
	sandboxNames = []byte("sandbox-names")
	endpoints    = []byte("endpoints")    // sandbox, interface
	endpointsOn  = []byte("endpoints-on") // network, sandbox, interface
	addresses    = []byte("addresses")    // scope, address: endpoint
	cursors      = []byte("cursors")      // network, prefix: address
	ports        = []byte("ports")        // protocol, host port: all that are published there
	portsOn      = []byte("ports-on")     // network, sandbox, interface, block of host ports: how many lead there

	schemaKey = []byte("schema")
	bootKey   = []byte("boot")
	cookieKey = []byte("cookie")
)

var (
	rootSteps = []func(*bolt.Tx) error{
		makeBuckets(about, meta, networks, networkNames),
		makeBuckets(containers, containerIDs),
	}
	runSteps = []func(*bolt.Tx) error{
		makeBuckets(about, meta, sandboxes, sandboxNames, endpoints, endpointsOn, addresses, cursors, ports, portsOn),
		makeBuckets(runs),
	}
)

func makeBuckets(names ...[]byte) func(*bolt.Tx) error {
	return func(tx *bolt.Tx) error {
		for _, n := range names {
			if _, err := tx.CreateBucket(n); err != nil {
				return err
			}
		}
		return nil
	}
}

// errOldSchema says that a file must be migrated before it can be read.
var errOldSchema = errors.New("written by an older Berth and not yet brought forward")

// errOtherBoot says that a run store was written before the last reboot.
var errOtherBoot = errors.New("written before the last reboot")

// damaged is the error for a file that is not what was written.
func (l layout) damaged(why any) error {
	return fmt.Errorf("read %s: damaged (%v): restore it or move it away", l.path(), why)
}

// A file is an open bbolt file with its one transaction.
type file struct {
	layout
	*handle
	tx *bolt.Tx

	dirty   bool
	kept    bool // something other than a deletion was written
	added   int  // bytes of what was put, less what was deleted
	allowed int  // bytes that may be added without asking for room
}

// open begins a transaction on the file. It returns an error that matches
// [os.ErrNotExist] if there is none.
func (f *file) open(writable bool) error {
	info, err := os.Stat(f.path())
	if err != nil {
		return err
	}
	// bbolt takes an empty file for a new one. Ours get their name when they
	// are complete, so an empty one has lost what was in it.
	if info.Size() < int64(4*os.Getpagesize()) {
		return f.damaged(fmt.Sprintf("it has %d bytes", info.Size()))
	}
	f.handle = f.idle.Swap(nil)
	if f.handle != nil {
		holds, err := f.resume(info, writable)
		if err != nil {
			return f.openError(err)
		}
		if !holds {
			f.handle.close()
			f.handle = nil
		}
	}
	fresh := f.handle == nil
	if fresh {
		f.handle = &handle{info: info, writable: writable}
		if f.db, err = bolt.Open(f.path(), 0o600, f.options(writable)); err != nil {
			return f.openError(err)
		}
		f.db.AllocSize = 64 << 10
	}
	if f.tx, err = f.db.Begin(writable); err != nil {
		return f.openError(err)
	}
	if f.tx.Size() > info.Size() {
		return f.damaged(fmt.Sprintf("it has %d of %d bytes", info.Size(), f.tx.Size()))
	}
	if fresh {
		f.last, f.wrote = f.tx.ID(), info.ModTime()
		if writable {
			f.last-- // the list is of the one before
		}
	}
	return nil
}

// options open the file without the O_CREATE of bbolt, and keep hold of it for
// [file.abandon].
func (f *file) options(writable bool) *bolt.Options {
	return &bolt.Options{
		ReadOnly: !writable,
		NoSync:   !f.sync,
		// Our own lock is held, so this only waits for a foreign program.
		Timeout: patience,
		// The free list is written: without, bbolt walks the whole file at
		// every open.
		NoFreelistSync: false,
		NoGrowSync:     !f.sync,
		OpenFile: func(path string, flag int, mode os.FileMode) (*os.File, error) {
			var err error
			f.f, err = os.OpenFile(path, flag&^os.O_CREATE, mode)
			return f.f, err
		},
	}
}

func (f *file) openError(err error) error {
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return fmt.Errorf("read %s: another program holds it open", f.path())
	case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrChecksum), errors.Is(err, bolterrors.ErrVersionMismatch):
		return f.damaged(err)
	}
	var path *os.PathError
	if errors.As(err, &path) {
		return err // it has the path
	}
	return fmt.Errorf("read %s: %w", f.path(), err)
}

// check looks at the file's schema and, if it can write, brings it forward.
func (f *file) check() error {
	b := f.tx.Bucket(about)
	if b == nil {
		return f.damaged("it is not Berth's")
	}
	have, err := strconv.Atoi(string(b.Get(schemaKey)))
	if err != nil || have < 1 {
		return f.damaged(fmt.Sprintf("its schema is %q", b.Get(schemaKey)))
	}
	switch want := len(f.steps); {
	case have > want:
		return fmt.Errorf("read %s: written by a newer Berth (schema %d, this one knows %d)", f.path(), have, want)
	case have == want:
		return nil
	case !f.tx.Writable():
		return fmt.Errorf("read %s: %w (schema %d of %d)", f.path(), errOldSchema, have, want)
	}
	f.dirty, f.kept = true, true
	return f.migrate(have)
}

func (f *file) migrate(have int) error {
	for i, step := range f.steps[have:] {
		if err := step(f.tx); err != nil {
			return fmt.Errorf("bring %s to schema %d: %w", f.path(), have+i+1, err)
		}
	}
	return f.tx.Bucket(about).Put(schemaKey, []byte(strconv.Itoa(len(f.steps))))
}

// checkHost looks whose run store it is.
func (f *file) checkHost(s *Store) error {
	b := f.tx.Bucket(about)
	if b == nil {
		return f.damaged("it is not Berth's")
	}
	if string(b.Get(bootKey)) != s.host.BootID {
		return errOtherBoot
	}
	cookie, err := strconv.ParseUint(string(b.Get(cookieKey)), 10, 64)
	if err != nil {
		return f.damaged(err)
	}
	if cookie != s.host.Cookie {
		return s.foreign(cookie)
	}
	return nil
}

// create makes the file anew, in place of whatever has its name. It gets the
// name when it is complete: a crash leaves the old one or the new one.
func (l layout) create(fill func(*bolt.Bucket) error) error {
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return err
	}
	fresh := l.path() + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	db, err := bolt.Open(fresh, 0o600, &bolt.Options{NoSync: true, NoGrowSync: true})
	if err != nil {
		return fmt.Errorf("write %s: %w", fresh, err)
	}
	f := &file{layout: l, handle: &handle{db: db}}
	err = db.Update(func(tx *bolt.Tx) error {
		f.tx = tx
		if err := f.migrate(0); err != nil {
			return err
		}
		return fill(tx.Bucket(about))
	})
	if err = errors.Join(err, db.Close()); err != nil {
		return fmt.Errorf("write %s: %w", fresh, err)
	}
	if l.reserve {
		if err := allocate(fresh, least); err != nil {
			os.Remove(fresh) // best effort: the disk is full
			return err
		}
	}
	if l.sync {
		if err := syncPath(fresh); err != nil {
			return err
		}
	}
	crash.Point("store." + l.name + ".create")
	if err := os.Rename(fresh, l.path()); err != nil {
		return err
	}
	if l.sync {
		return syncPath(l.dir)
	}
	return nil
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

const (
	least = 1 << 20 // bytes of a new file
	slack = 64      // pages
)

// ensureRoom sees to it that whatever is in the file can be deleted on a full
// disk. bbolt never writes a page in place, so a deletion needs pages: at most
// as many as are in use, and a run of them for the list of free ones. So the
// file has twice what is in use and some more, before it may grow.
func (f *file) ensureRoom() error {
	if !f.reserve || f.added <= f.allowed {
		return nil
	}
	page := f.db.Info().PageSize
	top := int(f.tx.Size()) / page
	// The free pages before this transaction; a page is at worst half full.
	stats := f.db.Stats()
	used := top - stats.FreePageN - stats.PendingPageN + 2*f.added/page + 8
	want := int64(max(top, 2*used)+slack) * int64(page)
	var st unix.Stat_t
	if err := unix.Fstat(int(f.f.Fd()), &st); err != nil {
		return &os.PathError{Op: "stat", Path: f.path(), Err: err}
	}
	if st.Size >= want && st.Blocks*512 >= st.Size {
		return nil
	}
	if err := allocate(f.path(), max(want, st.Size)); err != nil {
		return err
	}
	if f.sync {
		return f.f.Sync()
	}
	return nil
}

// allocate gives a file room on the disk.
func allocate(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		err = unix.Fallocate(int(f.Fd()), 0, 0, size)
		switch err {
		case nil, unix.EOPNOTSUPP: // where the file system cannot, a full disk is full
			return nil
		case unix.EINTR:
			continue
		}
		return &os.PathError{Op: "write", Path: path, Err: err}
	}
}

// commit keeps what was written. The file is closed then or not, but its
// transaction has ended.
func (f *file) commit() error {
	crash.Point("store." + f.name + ".before-commit")
	tx := f.tx
	f.tx = nil
	f.last = -1 // which list of free pages is in memory after an error, nobody knows
	id := tx.ID()
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("write %s: %w", f.path(), err)
	}
	if info, err := f.f.Stat(); err == nil {
		f.last, f.wrote = id, info.ModTime()
	}
	crash.Point("store." + f.name + ".after-commit")
	return nil
}

// close ends the transaction, if it was not committed, and leaves the file open
// for the next.
func (f *file) close() {
	if f == nil || f.handle == nil {
		return
	}
	h := f.handle
	f.handle = nil
	if h.db == nil {
		return
	}
	if f.tx != nil {
		f.tx.Rollback()
		f.tx = nil
	}
	if h.writable && f.sync {
		h.close() // networks change rarely, and the disk may be remounted
		return
	}
	flock(h.f, unix.LOCK_UN)
	f.idle.Swap(h).close()
}

// abandon closes the file after a panic within bbolt, which may have left its
// mutexes locked: Close would wait for ever. The mapping stays until the
// process ends.
func (f *file) abandon() {
	if f == nil || f.handle == nil || f.f == nil {
		return
	}
	flock(f.f, unix.LOCK_UN)
	f.f.Close()
	f.handle, f.tx = nil, nil
}
