package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
)

// TestManyAtOnce lets 64 processes at a time connect, publish and disconnect
// on two networks. What they say fits together, the kernel is what the store
// wants, and nothing is left when all is taken back, again all at once.
func TestManyAtOnce(t *testing.T) {
	const many = 64
	v := newVictim(t)
	before := v.must(t, bare)
	v.must(t, "berth network create --subnet 10.1.0.0/24,fd00:1::/64 front && berth network create --subnet 10.2.0.0/24 back")
	all := func(script func(i int) string) []string {
		t.Helper()
		outs := make([]string, many)
		var wg sync.WaitGroup
		for i := range many {
			wg.Go(func() {
				out, err := v.sh(script(i))
				if outs[i] = out; err != nil {
					t.Errorf("%s: %v\n%s", script(i), err, out)
				}
			})
		}
		wg.Wait()
		if t.Failed() {
			t.FailNow()
		}
		return outs
	}
	all(func(i int) string { return fmt.Sprintf("berth sandbox create s%d", i) })
	addrs := all(func(i int) string {
		return fmt.Sprintf("berth network connect %s s%d", []string{"front", "back"}[i%2], i)
	})
	unique(t, addrs)
	// Half of the ports are random, and no two want the same.
	ports := all(func(i int) string {
		if i%2 == 0 {
			return fmt.Sprintf("berth publish s%d 80", i)
		}
		return fmt.Sprintf("berth publish s%d %d:80 %d:53/udp", i, 8000+i, 8000+i)
	})
	unique(t, ports)
	v.must(t, "berth check")
	v.owners(t, many)

	// All want one port: one gets it, the others are told who has it.
	answers := all(func(i int) string { return fmt.Sprintf("berth publish s%d 0.0.0.0:7000:80 || true", i) })
	won := 0
	for _, a := range answers {
		switch {
		case strings.Contains(a, "-> 0.0.0.0:7000"):
			won++
		case !strings.Contains(a, "port 0.0.0.0:7000/tcp is published by sandbox s"):
			t.Errorf("refused with: %s", a)
		}
	}
	if won != 1 {
		t.Errorf("one port was given to %d", won)
	}

	// Everything at once: some leave and come again, some move to the other
	// network, some publish, somebody looks and somebody heals.
	all(func(i int) string {
		home, other := "front", "back"
		if i%2 == 1 {
			home, other = other, home
		}
		switch i % 4 {
		case 0:
			return fmt.Sprintf("berth network disconnect %[1]s s%[2]d && berth network connect %[1]s s%[2]d", home, i)
		case 1:
			return fmt.Sprintf("berth network connect %s s%d && berth unpublish s%d --all && berth publish s%d %d:80", other, i, i, i, 9000+i)
		case 2:
			return fmt.Sprintf("berth network connect %s s%d && berth network disconnect %s s%d", other, i, home, i)
		}
		return fmt.Sprintf("berth publish s%d %d:81 && berth reconcile && berth port s%d && berth sandbox ls", i, 9000+i, i)
	})
	v.must(t, "berth check")
	v.owners(t, many)

	// Two take the same thing away, at the same time.
	all(func(i int) string {
		if i < 4 {
			return fmt.Sprintf("berth network rm --force %s || true", []string{"front", "back"}[i%2])
		}
		return fmt.Sprintf("berth sandbox rm s%d", i)
	})
	v.must(t, "for i in 0 1 2 3; do berth sandbox rm s$i; done; berth check")
	v.must(t, removal)
	if after := v.must(t, bare); after != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
	}
}

// unique fails the test if two of the answers name one address or one port.
func unique(t *testing.T, answers []string) {
	t.Helper()
	seen := map[string]int{}
	for i, a := range answers {
		proto := ""
		for _, word := range strings.Fields(a) {
			if _, p, ok := strings.Cut(word, "/"); ok && (p == "tcp" || p == "udp") {
				proto = p
			}
			_, notPrefix := netip.ParsePrefix(word)
			_, notPort := netip.ParseAddrPort(word)
			if notPrefix != nil && notPort != nil {
				continue
			}
			word += " " + proto
			if j, twice := seen[word]; twice {
				t.Errorf("%s was given to %d and %d", word, j, i)
			}
			seen[word] = i
		}
	}
	if len(seen) < len(answers) {
		t.Errorf("%d answers name %d addresses", len(answers), len(seen))
	}
}

// owners checks what is said of sandboxes and ports against each other: no
// address has two owners, and each port leads to an address of its sandbox.
func (v *victim) owners(t *testing.T, many int) {
	t.Helper()
	var all []struct {
		Name            string
		NetworkSettings struct {
			Networks map[string]struct{ IPAddress, GlobalIPv6Address string }
		}
	}
	if err := json.Unmarshal([]byte(v.must(t, "berth sandbox inspect $(berth sandbox ls -q)")), &all); err != nil {
		t.Fatal(err)
	}
	if len(all) != many {
		t.Errorf("%d sandboxes, want %d", len(all), many)
	}
	owner, of := map[string]string{}, map[string][]string{}
	for _, s := range all {
		for _, n := range s.NetworkSettings.Networks {
			for _, a := range []string{n.IPAddress, n.GlobalIPv6Address} {
				if a == "" {
					continue
				}
				if other, twice := owner[a]; twice {
					t.Errorf("%s belongs to %s and %s", a, other, s.Name)
				}
				owner[a] = s.Name
				of[s.Name] = append(of[s.Name], a)
			}
		}
	}
	for line := range strings.Lines(v.must(t, "berth port --format '{{.Sandbox}} {{.To}}' 2>/dev/null")) {
		name, to, _ := strings.Cut(strings.TrimSpace(line), " ")
		at, err := netip.ParseAddrPort(to)
		if err != nil || !slices.Contains(of[name], at.Addr().String()) {
			t.Errorf("a port of %s leads to %s, which is not its (%v)", name, to, of[name])
		}
	}
}
