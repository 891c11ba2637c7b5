package engine

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"berth"
	"berth/internal/foreign"
	"berth/internal/store"
)

// Obstacles returns the rules and policies of other tools that drop what Berth
// allows, each with the command that cures it. Berth edits nobody's chains.
func (e *Engine) Obstacles(ctx context.Context) ([]Obstacle, error) {
	var all []berth.Network
	err := e.store.View(ctx, func(tx *store.Tx) (err error) {
		all, err = tx.Networks()
		return err
	})
	if err != nil {
		return nil, err
	}
	return e.obstacles(all)
}

func (e *Engine) obstacles(all []berth.Network) ([]Obstacle, error) {
	var bridges []foreign.Network
	for _, n := range all {
		if n.Driver == berth.Bridge {
			f := foreign.Network{Bridge: n.Bridge, Internal: n.Internal || !n.Routed(), HostDeny: n.HostDeny || !n.Routed(), IPv4: n.Has4(), IPv6: n.Has6()}
			for _, s := range n.Subnets {
				f.Subnets = append(f.Subnets, s.Prefix)
			}
			bridges = append(bridges, f)
		}
	}
	if len(bridges) == 0 {
		return nil, nil
	}
	slices.SortFunc(bridges, func(a, b foreign.Network) int { return strings.Compare(a.Bridge, b.Bridge) })
	e.mu.Lock()
	defer e.mu.Unlock()
	found, err := e.kernel.Obstacles(bridges)
	if err != nil {
		return nil, fmt.Errorf("look at other tools' firewalls: %w", err)
	}
	out := make([]Obstacle, len(found))
	for i, o := range found {
		out[i] = Obstacle(o)
	}
	return out, nil
}

// Info tells what the host is and what of its kernel Berth can use.
func (e *Engine) Info(ctx context.Context) (HostInfo, error) {
	h := HostInfo{Root: e.o.Root, Run: e.o.Run}
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return h, err
	}
	h.Kernel = strings.TrimSpace(string(release))
	err = e.store.View(ctx, func(tx *store.Tx) error {
		w, err := readWorld(tx)
		h.Networks, h.Sandboxes, h.Endpoints, h.Ports = len(w.networks), len(w.sandboxes), len(w.endpoints), len(w.ports)
		return err
	})
	if err != nil {
		return h, err
	}
	for _, p := range e.pools() {
		h.Pools = append(h.Pools, Pool(p))
	}
	features, err := e.kernel.Probe()
	if err != nil {
		return h, err
	}
	for _, f := range features {
		h.Features = append(h.Features, Feature{Name: f.Name, Have: f.Have, Costs: f.Costs})
	}
	return h, nil
}
