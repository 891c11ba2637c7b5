package store

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
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

func TestNetworks(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, testHost)
	a, b := network(0x12345678), network(0x12349999)
	sub := a.Subnets[0].Prefix
	update(t, s, func(tx *Tx) error {
		return errors.Join(tx.PutNetwork(a), tx.PutNetwork(b), tx.SetRootMeta("host-id", []byte("h")),
			tx.SetCursor(a.ID, sub, sub.Addr().Next()))
	})
	s = open(t, dir, testHost) // read back what is on disk
	view(t, s, func(tx *Tx) error {
		all, err := tx.Networks()
		same(t, "networks", all, []berth.Network{a, b})
		for ref, want := range map[string]berth.Network{a.ID: a, a.Name: a, a.ID[:8]: a, b.ID[:4]: {}, b.ID[:6]: b} {
			got, err := tx.Network(ref)
			if want.ID == "" {
				if !errors.Is(err, berth.ErrInvalid) {
					t.Errorf("%s: %v", ref, err)
				}
				continue
			}
			if err != nil || got.ID != want.ID {
				t.Errorf("%s: %v, %v", ref, got.ID, err)
			}
		}
		for _, ref := range []string{"", "123", "front", "ffff"} {
			if _, err := tx.Network(ref); !errors.Is(err, berth.ErrNotFound) {
				t.Errorf("%q: %v", ref, err)
			}
		}
		_, front := tx.Network("front")
		if front == nil || front.Error() != "network front: not found" {
			t.Errorf("%v", front)
		}
		m, err2 := tx.RootMeta("host-id")
		c, err3 := tx.Cursor(a.ID, sub)
		if string(m) != "h" || c != sub.Addr().Next() {
			t.Errorf("meta %q, cursor %v", m, c)
		}
		return errors.Join(err, err2, err3)
	})
	update(t, s, func(tx *Tx) error { return errors.Join(tx.DeleteNetwork(a.ID), tx.DeleteNetwork(a.ID)) })
	view(t, s, func(tx *Tx) error {
		all, err := tx.Networks()
		same(t, "networks", all, []berth.Network{b})
		c, err2 := tx.Cursor(a.ID, sub)
		if c.IsValid() {
			t.Errorf("the cursor stayed: %v", c)
		}
		if _, err := tx.Network(a.Name); !errors.Is(err, berth.ErrNotFound) {
			t.Errorf("by name: %v", err)
		}
		return errors.Join(err, err2)
	})
}

func TestEndpointsTakeAndFreeAddresses(t *testing.T) {
	s := open(t, t.TempDir(), testHost)
	one, two, private := endpoint(1, 2), endpoint(1, 3), endpoint(4, 2)
	update(t, s, func(tx *Tx) error {
		return errors.Join(tx.PutEndpoint(one, ""), tx.PutEndpoint(two, ""), tx.PutEndpoint(private, id(4)))
	})
	taken := func(scope string, e berth.Endpoint) string {
		var by EndpointKey
		view(t, s, func(tx *Tx) error {
			by, _ = tx.Taken(scope, e.Addr4())
			return nil
		})
		if by.Sandbox == "" {
			return ""
		}
		return by.Sandbox[:8] + " " + by.Interface
	}
	for _, c := range []struct {
		scope string
		e     berth.Endpoint
		want  string
	}{{"", one, "00000002 eth1"}, {"", two, "00000003 eth1"}, {id(4), private, "00000002 eth4"}, {id(4), two, ""}, {id(9), one, ""}} {
		if got := taken(c.scope, c.e); got != c.want {
			t.Errorf("%s in %q: taken by %q, want %q", c.e.Addr4(), c.scope, got, c.want)
		}
	}
	view(t, s, func(tx *Tx) error {
		of, err := tx.EndpointsOf(id(2))
		same(t, "of 2", of, []berth.Endpoint{one, private})
		on, err2 := tx.EndpointsOn(id(1))
		same(t, "on 1", on, []berth.Endpoint{one, two})
		got, err3 := tx.Endpoint(id(3), "eth1")
		same(t, "endpoint", got, two)
		if _, err := tx.Endpoint(id(3), "eth9"); !errors.Is(err, berth.ErrNotFound) {
			t.Errorf("eth9: %v", err)
		}
		return errors.Join(err, err2, err3)
	})
	moved := one
	moved.Addrs = endpoint(1, 77).Addrs
	update(t, s, func(tx *Tx) error { return tx.PutEndpoint(moved, "") })
	if a, b := taken("", one), taken("", moved); a != "" || b != "00000002 eth1" {
		t.Errorf("after the move: %q and %q", a, b)
	}
	update(t, s, func(tx *Tx) error {
		return errors.Join(tx.DeleteEndpoint(id(2), "eth1"), tx.DeleteEndpoint(id(2), "eth1"), tx.DeleteEndpoint(id(2), "eth4"))
	})
	if a, b, c := taken("", moved), taken(id(4), private), taken("", two); a != "" || b != "" || c == "" {
		t.Errorf("after the deletion: %q %q %q", a, b, c)
	}
	// No index keeps anything of what is gone.
	update(t, s, func(tx *Tx) error { return tx.DeleteEndpoint(id(3), "eth1") })
	nothing(t, s, endpoints, endpointsOn, addresses)
}

func nothing(t *testing.T, s *Store, buckets ...[]byte) {
	t.Helper()
	view(t, s, func(tx *Tx) error {
		for _, name := range buckets {
			for k := range tx.runBucket(name).scan(nil) {
				t.Errorf("%s keeps %q", name, k)
			}
		}
		return nil
	})
}

func TestPorts(t *testing.T) {
	s := open(t, t.TempDir(), testHost)
	p := []berth.Port{
		port(1, 2, 80, "0.0.0.0"), port(1, 2, 80, "127.0.0.9"), port(1, 3, 81, "0.0.0.0"), port(4, 3, 80, "::"), port(1, 2, 8000, "0.0.0.0"),
	}
	update(t, s, func(tx *Tx) error {
		for _, p := range p {
			if err := tx.PutPort(p); err != nil {
				return err
			}
		}
		return nil
	})
	names := func(ps []berth.Port) (out []string) {
		for _, p := range ps {
			out = append(out, fmt.Sprintf("%s:%d", p.HostIP, p.HostPort))
		}
		slices.Sort(out)
		return out
	}
	view(t, s, func(tx *Tx) error {
		of, err1 := tx.PortsOf(id(2))
		on, err2 := tx.PortsOn(id(4))
		at, err3 := tx.PortsAt(berth.TCP, 80)
		udp, err4 := tx.PortsAt(berth.UDP, 80)
		all, err5 := tx.Ports()
		same(t, "of", names(of), []string{"0.0.0.0:80", "0.0.0.0:8000", "127.0.0.9:80"})
		same(t, "on", names(on), []string{":::80"})
		same(t, "at", names(at), []string{"0.0.0.0:80", "127.0.0.9:80", ":::80"})
		same(t, "udp", names(udp), []string(nil))
		if len(all) != 5 {
			t.Errorf("%d ports", len(all))
		}
		has, err6 := tx.HasPorts(id(4))
		hasNot, err7 := tx.HasPorts(id(9))
		if !has || hasNot {
			t.Errorf("HasPorts: %v, %v", has, hasNot)
		}
		got, err8 := tx.Port(p[3].PortKey)
		same(t, "port", got, p[3])
		return errors.Join(err1, err2, err3, err4, err5, err6, err7, err8)
	})
	update(t, s, func(tx *Tx) error {
		for _, p := range p {
			if err := errors.Join(tx.DeletePort(p.PortKey), tx.DeletePort(p.PortKey)); err != nil {
				return err
			}
		}
		return nil
	})
	nothing(t, s, ports, portsOf, portsOn)
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
