package store

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"berth"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var testHost = Host{BootID: "boot-1", Cookie: 7}

// open returns the store below dir.
func open(t testing.TB, dir string, h Host) *Store {
	t.Helper()
	s, err := Open(filepath.Join(dir, "root"), filepath.Join(dir, "run"), h)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func update(t testing.TB, s *Store, fn func(*Tx) error) {
	t.Helper()
	if err := s.Update(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

func view(t testing.TB, s *Store, fn func(*Tx) error) {
	t.Helper()
	if err := s.View(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

// id is a 64-digit id that begins with n.
func id(n int) string { return fmt.Sprintf("%08x%056x", n, 0) }

func network(n int) berth.Network {
	return berth.Network{ID: id(n), Name: fmt.Sprintf("net%d", n), Driver: berth.Bridge, HostEnd: true,
		Subnets: []berth.Subnet{{Prefix: netip.MustParsePrefix("10.9.0.0/16"), Gateway: netip.MustParseAddr("10.9.0.1")}}}
}

func sandbox(n int) berth.Sandbox {
	return berth.Sandbox{ID: id(n), Name: fmt.Sprintf("sb%d", n), Path: "/run/netns/x", Cookie: uint64(n)}
}

func endpoint(net, sb int) berth.Endpoint {
	a := netip.AddrFrom4([4]byte{10, 9, byte(sb >> 8), byte(sb)})
	return berth.Endpoint{ID: id(sb), Network: id(net), Sandbox: id(sb), Interface: fmt.Sprintf("eth%d", net),
		Addrs: []netip.Prefix{netip.PrefixFrom(a, 16)}}
}

func port(net, sb int, hostPort uint16, ip string) berth.Port {
	return berth.Port{
		PortKey: berth.PortKey{Protocol: berth.TCP, HostIP: netip.MustParseAddr(ip), HostPort: hostPort},
		Sandbox: id(sb), Network: id(net), Interface: fmt.Sprintf("eth%d", net),
		To: netip.MustParseAddrPort("10.9.0.2:80"),
	}
}

func same(t *testing.T, what string, got, want any) {
	t.Helper()
	if d := cmp.Diff(want, got, cmpopts.EquateEmpty(), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

func TestAViewMakesNothing(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, testHost)
	view(t, s, func(tx *Tx) error {
		ns, err1 := tx.Networks()
		sbs, err2 := tx.Sandboxes()
		eps, err3 := tx.Endpoints()
		ps, err4 := tx.Ports()
		m, err5 := tx.Meta("m")
		r, err6 := tx.RootMeta("m")
		if len(ns)+len(sbs)+len(eps)+len(ps)+len(m)+len(r) != 0 {
			t.Error("the empty store has something")
		}
		_, err := tx.Sandbox(id(1))
		if !errors.Is(err, berth.ErrNotFound) {
			t.Errorf("sandbox: %v", err)
		}
		if _, ok := tx.Taken("", netip.MustParseAddr("10.9.0.2")); ok {
			t.Error("an address is taken")
		}
		return errors.Join(err1, err2, err3, err4, err5, err6)
	})
	if _, err := s.Copy(filepath.Join(dir, "copy")); err != nil {
		t.Error(err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 0 {
		t.Errorf("made %v, %v", left, err)
	}
}

func TestAViewCannotWrite(t *testing.T) {
	s := open(t, t.TempDir(), testHost)
	write := func() {
		for name, fn := range map[string]func(*Tx) error{
			"network": func(tx *Tx) error { return tx.PutNetwork(network(1)) },
			"sandbox": func(tx *Tx) error { return tx.PutSandbox(sandbox(1)) },
			"meta":    func(tx *Tx) error { return tx.SetMeta("a", []byte("b")) },
		} {
			if err := s.View(t.Context(), fn); err == nil {
				t.Errorf("a View wrote a %s", name)
			}
		}
	}
	write()
	update(t, s, func(tx *Tx) error { return errors.Join(tx.PutNetwork(network(2)), tx.PutSandbox(sandbox(2))) })
	write()
}

func TestDirectoriesAreForTheOwnerOnly(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, testHost)
	update(t, s, func(tx *Tx) error { return tx.PutSandbox(sandbox(1)) })
	if exists(filepath.Join(dir, "root")) {
		t.Error("a sandbox made the network file")
	}
	update(t, s, func(tx *Tx) error { return tx.PutNetwork(network(1)) })
	for path, want := range map[string]os.FileMode{"root": 0o700, "run": 0o700, "root/berth.db": 0o600, "run/berth.db": 0o600} {
		info, err := os.Stat(filepath.Join(dir, path))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", path, info, err)
		}
	}
}

func TestAFailedUpdateKeepsNothing(t *testing.T) {
	s := open(t, t.TempDir(), testHost)
	update(t, s, func(tx *Tx) error { return errors.Join(tx.PutNetwork(network(1)), tx.PutSandbox(sandbox(1))) })
	no := errors.New("no")
	put := func(tx *Tx) error {
		return errors.Join(tx.PutNetwork(network(2)), tx.PutSandbox(sandbox(2)), tx.DeleteNetwork(id(1)))
	}
	if err := s.Update(t.Context(), func(tx *Tx) error { return errors.Join(put(tx), no) }); !errors.Is(err, no) {
		t.Fatal(err)
	}
	func() {
		defer func() {
			if p := recover(); p != "bug" {
				t.Errorf("the panic became %v", p)
			}
		}()
		s.Update(t.Context(), func(tx *Tx) error {
			put(tx)
			panic("bug")
		})
	}()
	gone := make(chan bool)
	go func() {
		defer close(gone)
		s.Update(context.Background(), func(tx *Tx) error {
			put(tx)
			runtime.Goexit() // as t.FailNow does
			return nil
		})
	}()
	<-gone
	view(t, s, func(tx *Tx) error {
		ns, err := tx.Networks()
		sbs, err2 := tx.Sandboxes()
		same(t, "networks", ns, []berth.Network{network(1)})
		same(t, "sandboxes", sbs, []berth.Sandbox{sandbox(1)})
		return errors.Join(err, err2)
	})
}

func TestARebootForgetsTheRunStore(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, testHost)
	update(t, s, func(tx *Tx) error { return errors.Join(tx.PutNetwork(network(1)), tx.PutSandbox(sandbox(1))) })
	s = open(t, dir, Host{"boot-2", 1})
	look := func(want int) {
		t.Helper()
		view(t, s, func(tx *Tx) error {
			ns, err := tx.Networks()
			sbs, err2 := tx.Sandboxes()
			if len(ns) != 1 || len(sbs) != want {
				t.Errorf("%d networks, %d sandboxes", len(ns), len(sbs))
			}
			return errors.Join(err, err2)
		})
	}
	look(0)
	update(t, s, func(tx *Tx) error { return tx.PutSandbox(sandbox(2)) })
	look(1)
}

func TestARunStoreBelongsToOneNamespace(t *testing.T) {
	dir := t.TempDir()
	update(t, open(t, dir, testHost), func(tx *Tx) error { return tx.PutSandbox(sandbox(1)) })
	s := open(t, dir, Host{testHost.BootID, 8})
	nop := func(*Tx) error { return nil }
	for _, err := range []error{s.View(t.Context(), nop), s.Update(t.Context(), nop)} {
		if !errors.Is(err, berth.ErrConflict) || !strings.Contains(err.Error(), "another network namespace") || !strings.Contains(err.Error(), "BERTH_RUN") {
			t.Errorf("%v", err)
		}
	}
}

func TestTheNetworkFileOutlivesTheRunDirectory(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, testHost)
	update(t, s, func(tx *Tx) error { return tx.PutNetwork(network(1)) })
	os.RemoveAll(filepath.Join(dir, "run")) // a reboot
	s = open(t, dir, Host{"boot-2", 1})
	view(t, s, func(tx *Tx) error {
		_, err := tx.Network("net1")
		return err
	})
	if exists(filepath.Join(dir, "run")) {
		t.Error("the view made the run directory")
	}
	c, err := s.Copy(filepath.Join(dir, "copy"))
	if err != nil {
		t.Fatal(err)
	}
	view(t, c, func(tx *Tx) error {
		_, err := tx.Network("net1")
		return err
	})
}

// Two Stores that keep their files open see what the other has done between.
func TestAnOpenFileIsOneAmongSeveral(t *testing.T) {
	dir := t.TempDir()
	a, b := open(t, dir, testHost), open(t, dir, testHost)
	put := func(s *Store, from, to int) {
		t.Helper()
		update(t, s, func(tx *Tx) error {
			for i := from; i < to; i++ {
				if err := tx.PutSandbox(sandbox(i)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	count := func(s *Store, want int) {
		t.Helper()
		view(t, s, func(tx *Tx) error {
			all, err := tx.Sandboxes()
			if len(all) != want {
				t.Errorf("%d sandboxes, want %d", len(all), want)
			}
			return err
		})
	}
	put(a, 0, 10)
	put(b, 10, 20)
	put(a, 20, 30)
	count(a, 30)
	count(b, 30)
	// The file outgrows what the other has mapped.
	put(b, 30, 20000)
	count(a, 20000)
	put(a, 20000, 20010)
	count(b, 20010)
	// An update that fails leaves nothing behind.
	err := b.Update(t.Context(), func(tx *Tx) error { return errors.Join(tx.PutSandbox(sandbox(30000)), errors.New("no")) })
	if err == nil {
		t.Error("no error")
	}
	put(a, 20010, 20020)
	put(b, 20020, 20030)
	count(a, 20030)
	// Another file of the same name is another file.
	if err := os.RemoveAll(filepath.Join(dir, "run")); err != nil {
		t.Fatal(err)
	}
	count(a, 0)
	put(b, 0, 5)
	count(a, 5)
	put(a, 5, 7)
	count(b, 7)
}

// A file that is restored in place is not taken for what it was, though its
// transactions come to have the same numbers again.
func TestAnOpenFileIsRestored(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "run", "berth.db")
	a, b := open(t, dir, testHost), open(t, dir, testHost)
	put := func(s *Store, from, n int) {
		t.Helper()
		update(t, s, func(tx *Tx) error {
			for i := range n {
				if err := tx.PutSandbox(sandbox(from + i)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	put(a, 0, 300)
	saved, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		put(a, 1000+200*i, 200)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	// Files have the time of the last tick, some milliseconds ago.
	for now := info; !now.ModTime().After(info.ModTime()); {
		if err := os.WriteFile(path, saved, 0o600); err != nil {
			t.Fatal(err)
		}
		if now, err = os.Stat(path); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 5 {
		put(b, 5000+3*i, 3)
	}
	put(a, 9000, 500)
	update(t, b, func(tx *Tx) error {
		for err := range tx.run.tx.Check() {
			t.Error(err)
		}
		all, err := tx.Sandboxes()
		if len(all) != 815 {
			t.Errorf("%d sandboxes, want 815", len(all))
		}
		return err
	})
}
