package cli

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"berth"
	"berth/engine"
	"berth/internal/container"
)

// connectFlags are the flags of "network connect" as they are typed.
type connectFlags struct {
	ip, ip6, mac, dev        string
	aliases, labels, publish []string
	priority                 int
	found                    bool
	rateFlags
}

func (p *program) connect() *cobra.Command {
	var c connectFlags
	cmd := &cobra.Command{
		Use: "connect NETWORK SANDBOX", Short: "Connect a sandbox to a network", Args: cobra.ExactArgs(2),
		Long: `Connect a sandbox to a network. What is in it already stays as it is: where
somebody else's default route stands in the way of Berth's, nothing is done; it
is to be deleted or given a metric, or the network to be one without a way out
(--internal). The answer is the interface inside the sandbox and its addresses.

With --found, the interface is another program's, as are its addresses, which
are to be of the network's subnets: ports and limits are Berth's, and nothing
else is made, changed or deleted, then or when it is disconnected.

With --publish, ports are published too, and the answer lists them; if that is
refused, the sandbox does not stay connected.`,
		Example:           "  berth network connect front web\n  berth network connect -p 8888:80 -p 53:53/udp front web\n  berth network connect --ip 10.9.0.7 front pid:4711\n  berth network connect --interface eth1 back path:/proc/4711/ns/net\n  berth network connect --rate-in 10mbit --rate-out 5mbit front web",
		ValidArgsFunction: p.completeConnect,
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := c.options()
			if err != nil {
				return usage(err)
			}
			specs, err := portSpecs(c.publish)
			if err != nil {
				return usage(err)
			}
			return p.with(cmd.Context(), func(e *engine.Engine) error {
				ep, ports, err := p.connectOne(cmd.Context(), e, args[0], args[1], o, specs)
				if err != nil {
					return err
				}
				if ep.Interface == "" {
					return nil // a container that does not run
				}
				words := []string{ep.Interface}
				for _, a := range ep.Addrs {
					words = append(words, a.String())
				}
				p.say(strings.Join(words, " "))
				for _, x := range ports {
					p.say(portLine(x))
				}
				return nil
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.ip, "ip", "", "IPv4 `address` (default: the next free one)")
	f.StringVar(&c.ip6, "ip6", "", "IPv6 `address` (default: the next free one)")
	f.StringVar(&c.mac, "mac-address", "", "Ethernet `address` (default: a function of network and address)")
	f.StringVar(&c.dev, "interface", "", "`name` inside the sandbox (default: the first free of eth0, eth1, …)")
	f.StringArrayVar(&c.aliases, "alias", nil, "another `name` of the sandbox on this network")
	f.IntVar(&c.priority, "gw-priority", 0, "the network with the highest `number` gives the default route")
	f.StringArrayVar(&c.labels, "label", nil, "a label, as `KEY=VALUE`")
	f.StringArrayVarP(&c.publish, "publish", "p", nil, "publish a `port` on this network, as \"berth publish\" does")
	f.BoolVar(&c.found, "found", false, "others have connected it, by --interface: it is recorded and left alone")
	c.rateFlags.flags(cmd)
	for _, name := range []string{"ip", "ip6", "mac-address", "interface", "alias", "gw-priority", "label", "publish"} {
		completeFlag(cmd, name, cobra.NoFileCompletions)
	}
	refuse(cmd, "network connect")
	return p.changing(cmd)
}

// connectOne connects a sandbox, or a container, which is to stay connected over
// a restart, and publishes ports of it.
func (p *program) connectOne(ctx context.Context, e *engine.Engine, network, ref string, o engine.ConnectOptions, specs []berth.PortSpec) (ep berth.Endpoint, ports []berth.Port, err error) {
	wished, err := p.wish(ctx, e, ref, func(s *container.Service, id string) error {
		if o.Found {
			return fmt.Errorf("connect to %s: --found: the interfaces of a container are Berth's own: %w", network, berth.ErrInvalid)
		}
		got, err := s.Connect(ctx, id, berth.Attachment{
			Network: network, IP4: o.IP4, IP6: o.IP6, MAC: o.MAC, Interface: o.Interface, Aliases: o.Aliases, GwPriority: o.GwPriority, Rates: o.Rates,
		})
		if ep = got.Endpoint; err != nil || len(specs) == 0 {
			return err
		}
		if ports, err = s.Publish(ctx, id, specs, container.PublishChoice{Network: network}); err != nil {
			err = takenBack(network, err, s.Disconnect(context.WithoutCancel(ctx), id, network))
		}
		return err
	})
	if wished || err != nil {
		return ep, ports, err
	}
	if ep, err = e.Connect(ctx, network, ref, o); err != nil || len(specs) == 0 {
		return ep, nil, err
	}
	if ports, err = e.Publish(ctx, ref, specs, engine.PublishOptions{Network: network}); err != nil {
		back := engine.DisconnectOptions{Interface: ep.Interface}
		err = takenBack(network, err, e.Disconnect(context.WithoutCancel(ctx), network, []string{ref}, back))
	}
	return ep, ports, err
}

// takenBack is that ports could not be published, so that the connection was
// taken back, even by one who was interrupted.
func takenBack(network string, err, undone error) error {
	return errors.Join(fmt.Errorf("connect to %s, taken back: %w", network, err), undone)
}

func (c *connectFlags) options() (engine.ConnectOptions, error) {
	o := engine.ConnectOptions{Interface: c.dev, Aliases: c.aliases, GwPriority: c.priority, Found: c.found}
	var err error
	if o.Labels, err = keyValues("label", c.labels); err != nil {
		return o, err
	}
	if o.Rates, err = c.rates(); err != nil {
		return o, err
	}
	if c.ip != "" {
		if o.IP4, err = netip.ParseAddr(c.ip); err != nil || !o.IP4.Is4() {
			return o, fmt.Errorf("--ip %q: an IPv4 address is wanted, as 10.9.0.7", c.ip)
		}
	}
	if c.ip6 != "" {
		if o.IP6, err = netip.ParseAddr(c.ip6); err != nil || !o.IP6.Is6() || o.IP6.Is4In6() || o.IP6.Zone() != "" {
			return o, fmt.Errorf("--ip6 %q: an IPv6 address is wanted, as fd00::7", c.ip6)
		}
	}
	if c.mac != "" {
		if o.MAC, err = berth.ParseMAC(c.mac); err != nil {
			return o, fmt.Errorf("--mac-address: %w", err)
		}
		if o.MAC[0]&1 != 0 || o.MAC == (berth.MAC{}) {
			return o, fmt.Errorf("--mac-address %s: it is not the address of one interface", c.mac)
		}
	}
	return o, nil
}

func (p *program) disconnect() *cobra.Command {
	var o engine.DisconnectOptions
	cmd := &cobra.Command{
		Use: "disconnect NETWORK SANDBOX…", Short: "Disconnect sandboxes from a network", Args: cobra.MinimumNArgs(2),
		Long: `Disconnect sandboxes from a network, together. Addresses, ports, links and
connections are given back. A namespace that Berth did not make is forgotten
with its last endpoint.`,
		Example:           "  berth network disconnect front web api\n  berth network disconnect --interface eth1 front web",
		ValidArgsFunction: p.completeConnected,
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.with(cmd.Context(), func(e *engine.Engine) error {
				var sandboxes []string
				for _, ref := range slices.Compact(slices.Sorted(slices.Values(args[1:]))) {
					wished, err := p.wish(cmd.Context(), e, ref, func(s *container.Service, id string) error {
						return s.Disconnect(cmd.Context(), id, args[0])
					})
					if err != nil {
						return err
					}
					if !wished {
						sandboxes = append(sandboxes, ref)
					}
				}
				if len(sandboxes) == 0 {
					return nil
				}
				return e.Disconnect(cmd.Context(), args[0], sandboxes, o)
			})
		},
	}
	cmd.Flags().StringVar(&o.Interface, "interface", "", "only the endpoint with this `name` inside")
	cmd.Flags().BoolP("force", "f", false, "as Docker's: it makes no difference")
	completeFlag(cmd, "interface", cobra.NoFileCompletions)
	return p.changing(cmd)
}
