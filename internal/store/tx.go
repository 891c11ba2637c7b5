package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// A Tx is one transaction over both files, valid within the function that
// [Store.View] or [Store.Update] called. It is not safe for several goroutines.
type Tx struct {
	s        *Store
	writable bool

	run, root *file // nil if there is none, root also until it is asked for
	opening   *file // while it is opened
	at        layout

	rootOpened bool

	records *portReader // of the bucket ports, once asked for
}

// guard calls fn and closes the files. bbolt trusts its files: a damaged one
// makes it panic, or fault where its mapping ends. Such a panic becomes an
// error; any other goes on.
func (tx *Tx) guard(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	done := false
	defer func() {
		if done {
			tx.run.close()
			tx.root.close()
			return
		}
		tx.run.abandon()
		tx.root.abandon()
		tx.opening.abandon()
		p := recover() // nil after a runtime.Goexit
		if p == nil {
			return
		}
		if _, ok := p.(missing); !ok && !fromBolt(p) {
			panic(p)
		}
		err = tx.at.damaged(p)
	}()
	err = fn()
	done = true
	return err
}

// A missing is the panic for a bucket that every file of the schema has.
type missing string

func (m missing) String() string { return "no bucket " + string(m) }

// fromBolt reports whether a panic that is being recovered began in bbolt or
// is a fault of its mapping.
func fromBolt(p any) bool {
	// A fault at an address that Go does not know has the address. A nil
	// pointer has none.
	if _, ok := p.(interface{ Addr() uintptr }); ok {
		return true
	}
	pcs := make([]uintptr, 64)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(1, pcs)])
	panicking := false
	for {
		f, more := frames.Next()
		switch {
		case strings.HasPrefix(f.Function, "runtime."):
			panicking = panicking || f.Function == "runtime.gopanic"
		case panicking:
			return strings.HasPrefix(f.Function, "go.etcd.io/bbolt")
		}
		if !more {
			return false
		}
	}
}

// open opens one file and checks it. It returns nil if there is none. A file
// that fails the check is closed, so nothing more is asked of it.
func (tx *Tx) open(l layout, writable bool, check func(*file) error) (*file, error) {
	f := &file{layout: l}
	tx.at, tx.opening = l, f
	err := f.open(writable)
	missing := errors.Is(err, os.ErrNotExist)
	if err == nil {
		err = check(f)
	}
	tx.opening = nil
	if err == nil {
		return f, nil
	}
	f.close()
	if missing {
		return nil, nil
	}
	return nil, err
}

// openRun opens the run store. One of another boot is as good as none: what it
// says was in the kernel is gone with the kernel. (On a tmpfs it is gone
// itself; this is for a run directory on a disk.)
func (tx *Tx) openRun() (err error) {
	check := func(f *file) error {
		if err := f.checkHost(tx.s); err != nil {
			return err
		}
		return f.check()
	}
	tx.run, err = tx.open(tx.s.run, tx.writable, check)
	if err != nil && err != errOtherBoot {
		return err
	}
	if tx.run != nil || !tx.writable {
		return nil
	}
	err = tx.s.run.create(func(b *bolt.Bucket) error {
		return errors.Join(b.Put(bootKey, []byte(tx.s.host.BootID)),
			b.Put(cookieKey, []byte(strconv.FormatUint(tx.s.host.Cookie, 10))))
	})
	if err != nil {
		return err
	}
	tx.run, err = tx.open(tx.s.run, true, check)
	return err
}

// openRoot opens the network file to read, unless it is open.
func (tx *Tx) openRoot() error {
	if tx.rootOpened {
		return nil
	}
	f, err := tx.open(tx.s.root, false, (*file).check)
	if errors.Is(err, errOldSchema) && tx.writable {
		return tx.openRootToWrite()
	}
	if err != nil {
		return err
	}
	tx.root, tx.rootOpened = f, true
	return nil
}

// openRootToWrite opens the network file to write. Most updates never do, and
// so never wait for the disk.
func (tx *Tx) openRootToWrite() error {
	if tx.root != nil && tx.root.tx.Writable() {
		return nil
	}
	if !tx.writable {
		return bolterrors.ErrTxNotWritable
	}
	tx.root.close()
	tx.root, tx.rootOpened = nil, false
	f, err := tx.open(tx.s.root, true, (*file).check)
	if f == nil && err == nil {
		if err = tx.s.root.create(func(*bolt.Bucket) error { return nil }); err == nil {
			f, err = tx.open(tx.s.root, true, (*file).check)
		}
	}
	if err != nil {
		return err
	}
	tx.root, tx.rootOpened = f, true
	return nil
}

// commit keeps what was written in both files.
func (tx *Tx) commit() error {
	order := []*file{tx.root, tx.run}
	if tx.root != nil && !tx.root.kept {
		order = []*file{tx.run, tx.root}
	}
	for _, f := range order {
		if f != nil && f.dirty {
			tx.at = f.layout
			if err := f.ensureRoom(); err != nil {
				return err
			}
		}
	}
	for _, f := range order {
		if f != nil && f.dirty {
			tx.at = f.layout
			if err := f.commit(); err != nil {
				return err
			}
		}
	}
	return nil
}

// A bucket is one of a file. That of a file that is not there is empty.
type bucket struct {
	b  *bolt.Bucket
	f  *file
	tx *Tx
}

func (tx *Tx) runBucket(name []byte) bucket { return tx.bucket(tx.run, name) }

func (tx *Tx) rootBucket(name []byte) (bucket, error) {
	if err := tx.openRoot(); err != nil {
		return bucket{}, err
	}
	return tx.bucket(tx.root, name), nil
}

func (tx *Tx) rootBucketToWrite(name []byte) (bucket, error) {
	if err := tx.openRootToWrite(); err != nil {
		return bucket{}, err
	}
	return tx.bucket(tx.root, name), nil
}

func (tx *Tx) bucket(f *file, name []byte) bucket {
	if f == nil {
		return bucket{tx: tx}
	}
	tx.at = f.layout
	b := f.tx.Bucket(name)
	if b == nil {
		panic(missing(name))
	}
	b.FillPercent = 0.9 // keys come mostly in order
	return bucket{b, f, tx}
}

// get returns the value of a key, nil if there is none. It is valid until the
// transaction ends.
func (b bucket) get(key []byte) []byte {
	if b.b == nil {
		return nil
	}
	b.tx.at = b.f.layout
	return b.b.Get(key)
}

// growth is how much longer a record may become on a full disk: enough for the
// mark that an endpoint is leaving.
const growth = 64

// overhead is what bbolt adds to a record.
const overhead = 16

func (b bucket) put(key, value []byte) error { return b.replace(key, b.get(key), value) }

// replace is put and delete (value is nil) of a key that is known to have old,
// nil if it is not there.
func (b bucket) replace(key, old, value []byte) error {
	if b.b == nil || !b.b.Writable() {
		return bolterrors.ErrTxNotWritable
	}
	if bytes.Equal(old, value) && (old == nil) == (value == nil) {
		return nil
	}
	b.f.dirty = true
	if value == nil {
		b.f.added -= len(key) + len(old) + overhead
		b.f.allowed += growth // it may be put again
		return b.b.Delete(key)
	}
	b.f.added += len(value) - len(old)
	if old == nil {
		b.f.added += len(key) + overhead
	} else {
		b.f.allowed += growth
	}
	b.f.kept = true
	return b.b.Put(key, value)
}

// delete removes a key; that it is not there is no error.
func (b bucket) delete(key []byte) error { return b.replace(key, b.get(key), nil) }

// scan goes over the keys that begin with prefix, in order. The bucket must
// not be written while it does.
func (b bucket) scan(prefix []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(k, v []byte) bool) {
		if b.b == nil {
			return
		}
		b.tx.at = b.f.layout
		c := b.b.Cursor()
		for k, v := c.Seek(prefix); k != nil && bytes.HasPrefix(k, prefix); k, v = c.Next() {
			if !yield(k, v) {
				return
			}
		}
	}
}

func (b bucket) putJSON(key []byte, v any) error {
	value, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return b.put(key, value)
}

// decode reads a record of the bucket.
func (b bucket) decode(value []byte, v any) error {
	if err := json.Unmarshal(value, v); err != nil {
		return b.f.damaged(fmt.Sprintf("a record: %v", err))
	}
	return nil
}

// all decodes the records whose keys begin with prefix.
func all[T any](b bucket, prefix []byte) ([]T, error) {
	var out []T
	for _, v := range b.scan(prefix) {
		var t T
		if err := b.decode(v, &t); err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	return out, nil
}

// key joins the parts of a key. No part but the last may hold a zero byte.
func key(parts ...string) []byte { return []byte(strings.Join(parts, "\x00")) }

// Meta returns what SetMeta kept in the run store under a key, nil if nothing.
func (tx *Tx) Meta(name string) ([]byte, error) {
	return bytes.Clone(tx.runBucket(meta).get([]byte(name))), nil
}

// SetMeta keeps a value in the run store until the next reboot. An empty one
// is forgotten.
func (tx *Tx) SetMeta(name string, value []byte) error {
	return tx.runBucket(meta).set(name, value)
}

// RootMeta returns what SetRootMeta kept under a key, nil if nothing.
func (tx *Tx) RootMeta(name string) ([]byte, error) {
	b, err := tx.rootBucket(meta)
	if err != nil {
		return nil, err
	}
	return bytes.Clone(b.get([]byte(name))), nil
}

// SetRootMeta keeps a value beside the networks. An empty one is forgotten.
func (tx *Tx) SetRootMeta(name string, value []byte) error {
	b, err := tx.rootBucketToWrite(meta)
	if err != nil {
		return err
	}
	return b.set(name, value)
}

func (b bucket) set(name string, value []byte) error {
	if len(value) == 0 {
		return b.delete([]byte(name))
	}
	return b.put([]byte(name), bytes.Clone(value))
}
