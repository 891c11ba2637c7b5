package store

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"berth"
)

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
		return errors.Join(tx.PutEndpoint(endpoint(1, 2), ""), tx.PutEndpoint(endpoint(1, 3), ""), tx.PutEndpoint(endpoint(4, 3), ""))
	})
	update(t, s, func(tx *Tx) error {
		for _, p := range p {
			if err := tx.PutPorts(p); err != nil {
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
		on, err2 := tx.PortsTo(endpoint(4, 3))
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
		got, err8 := tx.PortsOf(id(3))
		same(t, "ports", got, []berth.Port{p[3], p[2]})
		return errors.Join(err1, err2, err3, err4, err5, err6, err7, err8)
	})
	update(t, s, func(tx *Tx) error {
		for _, p := range p {
			if err := errors.Join(tx.DeletePorts(p), tx.DeletePorts(p)); err != nil {
				return err
			}
		}
		return nil
	})
	nothing(t, s, ports, portsOn)
}
