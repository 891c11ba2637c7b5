package cli

import (
	"context"
	"errors"
	"strings"

	"berth"
	"berth/engine"
	"berth/internal/container"
)

// wires connect containers by the engine.
type wires struct{ e *engine.Engine }

// ofContainer is the label of a sandbox that was made for a container.
const ofContainer = "berth.container"

func (w wires) Make(ctx context.Context, name, id string) (string, error) {
	sb, err := w.e.CreateSandbox(ctx, engine.SandboxSpec{Name: name, Labels: map[string]string{ofContainer: id}})
	return sb.Path, err
}

func (w wires) Remove(ctx context.Context, name, id string) error {
	d, err := w.e.InspectSandbox(ctx, name)
	if errors.Is(err, berth.ErrNotFound) || err == nil && d.Labels[ofContainer] != id {
		return nil
	}
	if err != nil {
		return err
	}
	return w.e.RemoveSandbox(ctx, name)
}

func (w wires) Connect(ctx context.Context, sandbox string, a berth.Attachment) (container.Endpoint, error) {
	if a.Network == defaultNetwork {
		if _, err := w.e.Network(ctx, defaultNetwork); errors.Is(err, berth.ErrNotFound) {
			if _, err = w.e.CreateNetwork(ctx, engine.NetworkSpec{Name: defaultNetwork}); err != nil && !errors.Is(err, berth.ErrExists) {
				return container.Endpoint{}, err
			}
		}
	}
	ep, err := w.e.Connect(ctx, a.Network, sandbox, engine.ConnectOptions{
		IP4: a.IP4, IP6: a.IP6, Prefer: a.Had, MAC: a.MAC, Interface: a.Interface, Aliases: a.Aliases, GwPriority: a.GwPriority, Rates: a.Rates,
	})
	if err != nil {
		return container.Endpoint{}, err
	}
	return w.endpoint(ctx, ep)
}

// endpoint adds to an endpoint what its network says.
func (w wires) endpoint(ctx context.Context, ep berth.Endpoint) (container.Endpoint, error) {
	n, err := w.e.Network(ctx, ep.Network)
	out := container.Endpoint{Endpoint: ep}
	for _, a := range ep.Addrs {
		if gw, ok := n.Gateway(a.Addr()); ok {
			out.Gateways = append(out.Gateways, gw.String())
		}
	}
	return out, err
}

func (w wires) Disconnect(ctx context.Context, sandbox, network string) error {
	return w.e.Disconnect(ctx, network, []string{sandbox}, engine.DisconnectOptions{})
}

func (w wires) Network(ctx context.Context, ref string) (string, error) {
	if ref == defaultNetwork { // it is made at first need
		return ref, nil
	}
	n, err := w.e.Network(ctx, ref)
	return n.Name, err
}

func (w wires) Update(ctx context.Context, sandbox, network, dev string, c berth.RateChange) error {
	_, err := w.e.UpdateEndpoint(ctx, network, sandbox, engine.UpdateOptions{Interface: dev, Rates: c})
	return err
}

func (w wires) Publish(ctx context.Context, sandbox string, specs []berth.PortSpec, o container.PublishChoice) ([]berth.Port, error) {
	return w.e.Publish(ctx, sandbox, specs, engine.PublishOptions{Network: o.Network, Replace: o.Replace, Cut: o.Cut})
}

func (w wires) Unpublish(ctx context.Context, sandbox string, specs []berth.PortSpec) ([]berth.Port, error) {
	return w.e.Unpublish(ctx, sandbox, specs)
}

func (w wires) Endpoints(ctx context.Context, sandbox string) (eps []container.Endpoint, err error) {
	d, err := w.e.InspectSandbox(ctx, sandbox)
	if err != nil {
		return nil, err
	}
	for _, e := range d.Endpoints {
		ep, err := w.endpoint(ctx, e.Endpoint)
		if err != nil {
			return nil, err
		}
		eps = append(eps, ep)
	}
	return eps, nil
}

// wish tries a change on the container that ref names, if it names one: it is to
// outlive a restart. A dry run has no wishes.
func (p *program) wish(ctx context.Context, e *engine.Engine, ref string, do func(*container.Service, string) error) (bool, error) {
	if p.dryRun || strings.Contains(ref, ":") {
		return false, nil
	}
	s, err := p.service(wires{e})
	if err != nil {
		return false, err
	}
	defer s.Close()
	c, err := s.Find(ctx, ref)
	if errors.Is(err, berth.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, do(s, c.ID)
}
