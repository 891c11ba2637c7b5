package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"berth"
)

// Jobs that a test runs in processes of their own: the test binary again.
var jobs = map[string]func(*testing.T){}

const jobEnv, jobDir = "STORE_TEST_JOB", "STORE_TEST_DIR"

// TestJob is not a test: it is what the processes of other tests run.
func TestJob(t *testing.T) {
	if job := jobs[os.Getenv(jobEnv)]; job != nil {
		job(t)
	}
}

func process(t *testing.T, job, dir string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), exe, "-test.run=^TestJob$", "-test.v")
	c.Env = append(os.Environ(), jobEnv+"="+job, jobDir+"="+dir)
	return c
}

// count adds one to a number in each file.
func count(ctx context.Context, s *Store) error {
	return s.Update(ctx, func(tx *Tx) error {
		run, err1 := tx.Meta("n")
		root, err2 := tx.RootMeta("n")
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		a, _ := strconv.Atoi(string(run))
		b, _ := strconv.Atoi(string(root))
		if a != b {
			return fmt.Errorf("the files hold %d and %d", a, b)
		}
		return errors.Join(tx.SetMeta("n", []byte(strconv.Itoa(a+1))), tx.SetRootMeta("n", []byte(strconv.Itoa(b+1))))
	})
}

func counted(t *testing.T, s *Store, want int) {
	t.Helper()
	view(t, s, func(tx *Tx) error {
		run, err := tx.Meta("n")
		root, err2 := tx.RootMeta("n")
		if w := strconv.Itoa(want); string(run) != w || string(root) != w {
			t.Errorf("counted %s and %s, want %s", run, root, w)
		}
		return errors.Join(err, err2)
	})
}

// memory is a directory on a tmpfs, as the run directory is.
func memory(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "berth-store-")
	if err != nil {
		t.Skip("no /dev/shm: ", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestGoroutinesCountTogether(t *testing.T) {
	dir := memory(t)
	var wg sync.WaitGroup
	for range 64 {
		s := open(t, dir, testHost)
		wg.Go(func() {
			for range 10 {
				if err := count(t.Context(), s); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	counted(t, open(t, dir, testHost), 640)
}

func init() {
	jobs["count"] = func(t *testing.T) {
		s := open(t, os.Getenv(jobDir), testHost)
		for i := range 20 {
			if err := count(t.Context(), s); err != nil {
				t.Fatal(err)
			}
			if i%5 == 0 {
				view(t, s, func(tx *Tx) error { _, err := tx.RootMeta("n"); return err })
			}
		}
	}
}

func TestProcessesCountTogether(t *testing.T) {
	dir := memory(t)
	var all []*exec.Cmd
	for range 16 {
		c := process(t, "count", dir)
		c.Stderr = os.Stderr
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	for _, c := range all {
		if err := c.Wait(); err != nil {
			t.Error(err)
		}
	}
	counted(t, open(t, dir, testHost), 16*20)
}

// A reader that comes while a writer waits for another reader waits too: else
// readers that overlap would keep the writer out for ever.
func TestReadersDoNotPassAWaitingWriter(t *testing.T) {
	s := open(t, memory(t), testHost)
	first, err := s.Lock(t.Context(), LockHost, "", false)
	if err != nil {
		t.Fatal(err)
	}
	written := make(chan error, 1)
	go func() {
		unlock, err := s.Lock(t.Context(), LockHost, "", true)
		if err == nil {
			unlock()
		}
		written <- err
	}()
	awaitBlocked(t, filepath.Join(s.run.dir, "locks", "host"))
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if unlock, err := s.Lock(short, LockHost, "", false); !errors.Is(err, context.DeadlineExceeded) {
		unlock()
		t.Errorf("a reader passed: %v", err)
	}
	first()
	if err := <-written; err != nil {
		t.Error(err)
	}
	last, err := s.Lock(t.Context(), LockHost, "", false)
	if err != nil {
		t.Fatal(err)
	}
	last()
}

// awaitBlocked returns when somebody waits for the flock of a file
// (/proc/locks marks who waits with an arrow).
func awaitBlocked(t *testing.T, path string) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	inode := fmt.Sprintf(":%d ", info.Sys().(*syscall.Stat_t).Ino)
	for t.Context().Err() == nil {
		b, err := os.ReadFile("/proc/locks")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			if strings.Contains(line, "-> FLOCK") && strings.Contains(line, inode) {
				return
			}
		}
		runtime.Gosched()
	}
}

func TestLocksExclude(t *testing.T) {
	dir := memory(t)
	a, b := open(t, dir, testHost), open(t, dir, testHost)
	ctx := t.Context()
	late, cancel := context.WithCancel(ctx)
	cancel()
	for _, c := range []struct {
		kind LockKind
		id   string
	}{{LockHost, ""}, {LockNetwork, id(1)}, {LockSandbox, "name-web"}, {LockSandbox, "path:/proc/1/ns/net"}} {
		for _, held := range []bool{true, false} {
			for _, wanted := range []bool{true, false} {
				unlock, err := a.Lock(ctx, c.kind, c.id, held)
				if err != nil {
					t.Fatal(err)
				}
				short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
				free := !held && !wanted
				got, err := b.Lock(short, c.kind, c.id, wanted)
				cancel()
				if free != (err == nil) || err != nil && !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("%v held exclusively %v, wanted %v: %v", c, held, wanted, err)
				}
				if got != nil {
					got()
				}
				unlock()
				unlock() // once is enough
				// What gave up waiting gives the lock back when it gets it.
				again, err := b.Lock(ctx, c.kind, c.id, true)
				if err != nil {
					t.Fatal(err)
				}
				again()
			}
		}
		if _, err := a.Lock(late, c.kind, c.id, true); !errors.Is(err, context.Canceled) {
			t.Errorf("a context that has ended: %v", err)
		}
	}
	if _, err := a.Lock(ctx, LockKind(9), "", true); !errors.Is(err, berth.ErrInvalid) {
		t.Errorf("kind 9: %v", err)
	}
}

// A network's lock file goes with it, and nobody ever holds it twice.
func TestForgottenLocksStillExclude(t *testing.T) {
	s := open(t, memory(t), testHost)
	var inside, most atomic.Int32
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 100 {
				unlock, err := s.Lock(t.Context(), LockNetwork, "n", true)
				if err != nil {
					t.Error(err)
					return
				}
				if n := inside.Add(1); n > most.Load() {
					most.Store(n)
				}
				inside.Add(-1)
				unlock()
				if err := s.Forget(LockNetwork, "n"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if most.Load() != 1 {
		t.Errorf("%d held one lock", most.Load())
	}
	s.Forget(LockNetwork, "n")
	if exists(filepath.Join(s.run.dir, "locks", "n-n")) {
		t.Error("the file stayed")
	}
	unlock, err := s.Lock(t.Context(), LockNetwork, "n", false)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Forget(LockNetwork, "n"); err != nil || !exists(filepath.Join(s.run.dir, "locks", "n-n")) {
		t.Errorf("forgot a lock that is held: %v", err)
	}
	unlock()
}

func TestACopyIsItsOwn(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, testHost)
	update(t, s, func(tx *Tx) error { return errors.Join(tx.PutNetwork(network(1)), tx.PutSandbox(sandbox(1))) })
	bytesOf := func() (out []string) {
		for _, l := range []layout{s.root, s.run} {
			b, err := os.ReadFile(l.path())
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, string(b))
		}
		return out
	}
	before := bytesOf()
	c, err := s.Copy(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	unlock, err := s.Lock(t.Context(), LockHost, "", true)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	mine, err := c.Lock(t.Context(), LockHost, "", true) // not the same lock
	if err != nil {
		t.Fatal(err)
	}
	mine()
	// A transaction of the one within one of the other: their locks differ too.
	update(t, s, func(*Tx) error {
		return c.Update(t.Context(), func(tx *Tx) error {
			return errors.Join(tx.DeleteNetwork(id(1)), tx.PutNetwork(network(2)), tx.PutSandbox(sandbox(2)))
		})
	})
	after := bytesOf()
	if after[0] != before[0] || after[1] != before[1] {
		t.Error("the original changed")
	}
	view(t, c, func(tx *Tx) error {
		_, err := tx.Network("net2")
		_, err2 := tx.SandboxByName("sb1")
		return errors.Join(err, err2)
	})
}

func BenchmarkUpdate(b *testing.B) {
	for _, n := range []int{0, 1000, 10000} {
		b.Run(fmt.Sprintf("ports=%d", n), func(b *testing.B) {
			s := open(b, memory(b), testHost)
			update(b, s, func(tx *Tx) error { return publish(tx, n) })
			i := 0
			for b.Loop() {
				i++
				update(b, s, func(tx *Tx) error { return tx.PutSandbox(sandbox(i % 8)) })
			}
		})
	}
}

func BenchmarkPublishOneMore(b *testing.B) {
	for _, n := range []int{0, 10000} {
		b.Run(fmt.Sprintf("ports=%d", n), func(b *testing.B) {
			s := open(b, memory(b), testHost)
			update(b, s, func(tx *Tx) error { return publish(tx, n) })
			p := port(1, 3, 60000, "0.0.0.0")
			for b.Loop() {
				update(b, s, func(tx *Tx) error { return tx.PutPorts(p) })
				update(b, s, func(tx *Tx) error { return tx.DeletePorts(p) })
			}
		})
	}
}

func BenchmarkView(b *testing.B) {
	s := open(b, memory(b), testHost)
	update(b, s, func(tx *Tx) error {
		return errors.Join(publish(tx, 10000), tx.PutNetwork(network(1)), tx.PutSandbox(sandbox(1)))
	})
	for b.Loop() {
		view(b, s, func(tx *Tx) error {
			_, err := tx.Network("net1")
			_, err2 := tx.Sandbox(id(1))
			return errors.Join(err, err2)
		})
	}
}

func publish(tx *Tx, n int) error {
	for i := range n {
		if err := tx.PutPorts(port(1, 2, uint16(1000+i), "0.0.0.0")); err != nil {
			return err
		}
	}
	return nil
}

func BenchmarkPublish10000(b *testing.B) {
	for _, order := range []string{"ascending", "by-address"} {
		b.Run(order, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				s := open(b, memory(b), testHost)
				update(b, s, func(tx *Tx) error { return tx.PutSandbox(sandbox(1)) })
				b.StartTimer()
				update(b, s, func(tx *Tx) error {
					if order == "ascending" {
						return publish(tx, 10000)
					}
					for _, ip := range []string{"0.0.0.0", "::"} {
						for i := range 5000 {
							if err := tx.PutPorts(port(1, 2, uint16(1000+i), ip)); err != nil {
								return err
							}
						}
					}
					return nil
				})
			}
		})
	}
}
