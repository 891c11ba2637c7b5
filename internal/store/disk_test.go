package store

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"berth"

	"golang.org/x/sys/unix"
)

// own runs a job in a mount namespace of its own.
func own(t *testing.T, job, dir string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts a tmpfs in a namespace of its own")
	}
	c := process(t, job, dir)
	c.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}

func init() {
	jobs["read-only"] = func(t *testing.T) {
		dir := os.Getenv(jobDir)
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"); err != nil {
			t.Fatal(err)
		}
		filled(t, dir).Close() // a file open to be written keeps its file system writable
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			t.Fatal(err)
		}
		read, write := use(t, open(t, dir, testHost))
		if read != nil {
			t.Errorf("read: %v", read)
		}
		if !errors.Is(write, unix.EROFS) || !strings.Contains(write.Error(), dir) {
			t.Errorf("write: %v", write)
		}
	}
	jobs["full"] = fullDisk
}

func TestAReadOnlyStoreCanBeRead(t *testing.T) { own(t, "read-only", t.TempDir()) }

func TestAFullDiskLetsGo(t *testing.T) { own(t, "full", t.TempDir()) }

// fullDisk fills a store and its disk, and then takes everything apart.
func fullDisk(t *testing.T) {
	dir := os.Getenv(jobDir)
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=24m"); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir, testHost)
	for _, big := range []bool{false, true} {
		grow(t, s, big)
		fill(t, filepath.Join(dir, "rest"))
		// What little room is left over in the file may be used, then it ends.
		refused := false
		for i := 0; i < 20000 && !refused; i++ {
			err := s.Update(t.Context(), func(tx *Tx) error { return tx.PutSandbox(sandbox(100000 + i)) })
			if err != nil && !errors.Is(err, unix.ENOSPC) {
				t.Fatal(err)
			}
			refused = err != nil
		}
		if !refused {
			t.Fatal("20,000 sandboxes fit on a full disk")
		}
		shrink(t, s, big)
		if err := os.Remove(filepath.Join(dir, "rest")); err != nil {
			t.Fatal(err)
		}
	}
}

func fill(t *testing.T, path string) {
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
}

func grow(t *testing.T, s *Store, big bool) {
	all := func(tx *Tx, i int) error {
		return errors.Join(tx.PutNetwork(network(i)), tx.PutSandbox(sandbox(i)), tx.PutEndpoint(endpoint(i, i), ""))
	}
	if big {
		update(t, s, func(tx *Tx) error {
			for i := range 500 {
				if err := all(tx, i); err != nil {
					return err
				}
			}
			return publish(tx, 4000)
		})
		return
	}
	for i := range 500 {
		update(t, s, func(tx *Tx) error {
			for j := range 4 {
				if err := tx.PutPorts(port(i, i, uint16(i*7919+j*37), "0.0.0.0")); err != nil {
					return err
				}
			}
			return all(tx, i)
		})
	}
}

// shrink does what disconnect and rm do: mark, unpublish, forget.
func shrink(t *testing.T, s *Store, big bool) {
	var eps []berth.Endpoint
	var ps []berth.Port
	view(t, s, func(tx *Tx) (err error) {
		if eps, err = tx.Endpoints(); err != nil {
			return err
		}
		ps, err = tx.Ports()
		return err
	})
	mark := func(tx *Tx, e berth.Endpoint) error {
		e.Leaving = true
		return tx.PutEndpoint(e, "")
	}
	drop := func(tx *Tx, e berth.Endpoint) error {
		return errors.Join(tx.DeleteEndpoint(e.Sandbox, e.Interface), tx.DeleteSandbox(e.Sandbox), tx.DeleteNetwork(e.Network))
	}
	each := func(n int, fn func(*Tx, int) error) {
		order := rand.New(rand.NewPCG(1, 2)).Perm(n)
		if big {
			update(t, s, func(tx *Tx) error {
				for _, i := range order {
					if err := fn(tx, i); err != nil {
						return err
					}
				}
				return nil
			})
			return
		}
		for _, i := range order {
			update(t, s, func(tx *Tx) error { return fn(tx, i) })
		}
	}
	each(len(eps), func(tx *Tx, i int) error { return mark(tx, eps[i]) })
	each(len(ps), func(tx *Tx, i int) error { return tx.DeletePorts(ps[i]) })
	each(len(eps), func(tx *Tx, i int) error { return drop(tx, eps[i]) })
	for i := 0; ; i++ {
		var found bool
		update(t, s, func(tx *Tx) error {
			sb, err := tx.Sandbox(id(100000 + i))
			found = err == nil
			return errors.Join(tx.DeleteSandbox(sb.ID))
		})
		if !found {
			break
		}
	}
	// And there is room again, without a byte more of the disk.
	update(t, s, func(tx *Tx) error { return errors.Join(tx.PutSandbox(sandbox(1)), tx.PutNetwork(network(1))) })
	update(t, s, func(tx *Tx) error { return errors.Join(tx.DeleteSandbox(id(1)), tx.DeleteNetwork(id(1))) })
}
