package store

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"berth"
)

// TestPortsAgreeWithAModel puts and deletes ports at random, many of them at
// the same host ports, and compares every question with a plain map.
func TestPortsAgreeWithAModel(t *testing.T) {
	s := open(t, t.TempDir(), testHost)
	rnd := rand.New(rand.NewPCG(1, 2))
	model := map[berth.PortKey]berth.Port{}
	var eps []berth.Endpoint
	update(t, s, func(tx *Tx) (err error) {
		for i := range 6 {
			eps = append(eps, endpoint(i%3, i/2))
			err = errors.Join(err, tx.PutEndpoint(eps[i], ""))
		}
		return err
	})
	draw := func() (ps []berth.Port) {
		used := map[berth.PortKey]bool{}
		for range rnd.IntN(40) {
			e := eps[rnd.IntN(len(eps))]
			p := berth.Port{
				PortKey: berth.PortKey{
					Protocol: []berth.Protocol{berth.TCP, berth.UDP}[rnd.IntN(2)], HostPort: uint16(200 + rnd.IntN(100)),
					HostIP: port(0, 0, 0, []string{"0.0.0.0", "::", "127.0.0.9"}[rnd.IntN(3)]).HostIP,
				},
				Sandbox: e.Sandbox, Network: e.Network, Interface: e.Interface, To: port(0, 0, 0, "::").To,
			}
			if !used[p.PortKey] {
				used[p.PortKey] = true
				ps = append(ps, p)
			}
		}
		return ps
	}
	matching := func(is func(berth.Port) bool) (out []berth.Port) {
		for _, p := range model {
			if is(p) {
				out = append(out, p)
			}
		}
		slices.SortFunc(out, byKey)
		return out
	}
	for range 50 {
		update(t, s, func(tx *Tx) error {
			put, drop := draw(), draw()
			for _, p := range put {
				model[p.PortKey] = p
			}
			for _, p := range drop {
				delete(model, p.PortKey)
			}
			return errors.Join(tx.PutPorts(put...), tx.DeletePorts(drop...))
		})
		view(t, s, func(tx *Tx) error {
			all, err := tx.Ports()
			same(t, "all", all, matching(func(berth.Port) bool { return true }))
			for _, e := range eps {
				to, err2 := tx.PortsTo(e)
				want := matching(func(p berth.Port) bool { return p.Sandbox == e.Sandbox && p.Interface == e.Interface })
				same(t, "to", to, want)
				has, err3 := tx.HasPorts(e.Network, e.Sandbox, e.Interface)
				same(t, "has", has, len(want) > 0)
				of, err4 := tx.PortsOf(e.Sandbox)
				same(t, "of", of, matching(func(p berth.Port) bool { return p.Sandbox == e.Sandbox }))
				err = errors.Join(err, err2, err3, err4)
			}
			return err
		})
	}
	update(t, s, func(tx *Tx) error {
		p := port(1, 1, 299, "10.9.0.9")
		model[p.PortKey] = p
		return tx.PutPorts(p, p) // twice is once
	})
	update(t, s, func(tx *Tx) error { return tx.DeletePorts(matching(func(berth.Port) bool { return true })...) })
	nothing(t, s, ports, portsOn)
}

// TestADamagedPortRecordIsAnError cuts a record everywhere, lengthens it, and
// takes it or its index away.
func TestADamagedPortRecordIsAnError(t *testing.T) {
	s := open(t, t.TempDir(), testHost)
	p := []berth.Port{port(1, 2, 80, "0.0.0.0"), port(1, 2, 80, "::"), port(1, 3, 80, "127.0.0.9")}
	update(t, s, func(tx *Tx) error {
		return errors.Join(tx.PutEndpoint(endpoint(1, 2), ""), tx.PutEndpoint(endpoint(1, 3), ""), tx.PutPorts(p...))
	})
	questions := map[string]func(*Tx) error{
		"Ports":       func(tx *Tx) error { _, err := tx.Ports(); return err },
		"PortsAt":     func(tx *Tx) error { _, err := tx.PortsAt(berth.TCP, 80); return err },
		"PortsOf":     func(tx *Tx) error { _, err := tx.PortsOf(id(2)); return err },
		"DeletePorts": func(tx *Tx) error { return tx.DeletePorts(p...) },
	}
	refused := func(what string, change func(*Tx) error, names ...string) {
		t.Helper()
		for _, name := range names {
			err := s.Update(t.Context(), func(tx *Tx) error { return errors.Join(change(tx), questions[name](tx)) })
			if err == nil || !strings.Contains(err.Error(), "damaged") {
				t.Errorf("%s, %s: %v", what, name, err)
			}
		}
	}
	k := hostPort(berth.TCP, 80)
	whole := encodePorts(p)
	whole1, whole2 := len(encodePorts(p[:1])), len(encodePorts(p[:2]))
	for n := range len(whole) {
		if n != whole1 && n != whole2 {
			refused(fmt.Sprintf("%d bytes", n), func(tx *Tx) error { return tx.runBucket(ports).put(k, whole[:n]) },
				"Ports", "PortsAt", "PortsOf", "DeletePorts")
		}
	}
	refused("a byte more", func(tx *Tx) error { return tx.runBucket(ports).put(k, append(slices.Clone(whole), 0)) },
		"Ports", "PortsAt", "PortsOf", "DeletePorts")
	refused("no record", func(tx *Tx) error { return tx.runBucket(ports).delete(k) }, "PortsOf")
	refused("no index", func(tx *Tx) error { return deleteAll(tx.runBucket(portsOn), nil) }, "DeletePorts")
}
