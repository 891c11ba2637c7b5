package cli

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"berth"
	"berth/engine"
)

// createFlags are the flags of "network create" as they are typed.
type createFlags struct {
	driver                    string
	subnets, gateways, ranges []string
	aux, opts, labels         []string
	ipv4, ipv6, internal      bool
}

func (p *program) networkCreate() *cobra.Command {
	var c createFlags
	cmd := &cobra.Command{
		Use: "create NETWORK…", Short: "Make networks", Args: cobra.MinimumNArgs(1),
		Long: `Make networks. Without --subnet each gets the next free prefix of the pools that
overlaps no route, address or other network of this host. Gateways, ranges and
auxiliary addresses belong to the subnet they lie in. The answer is the ids.

Options (--opt): icc=false (neighbours do not reach each other), mtu=BYTES,
bridge=NAME (a bridge of this name; one that exists is used and never deleted),
masquerade=false, host=deny (the host's own services are closed to the network),
and for a link host=false (two sandboxes, without the host); open=true (entered
from outside without a published port), default-route=false (sandboxes get no
default route), address=false (the bridge has no address: the gateway is another
machine's on the segment), hairpin=false and promisc=true (of the bridge and its
ports). Docker's com.docker.network.* names of these are understood.`,
		Example: "  berth network create front back\n  berth network create --ipv6 --subnet 10.9.0.0/24 --gateway 10.9.0.254 front\n  berth network create --driver link --opt host=false wire",
		RunE: func(cmd *cobra.Command, args []string) error {
			specs, err := c.specs(args)
			if err != nil {
				return err
			}
			return p.with(cmd.Context(), func(e *engine.Engine) error {
				for _, s := range specs {
					n, err := e.CreateNetwork(cmd.Context(), s)
					if err != nil {
						return err
					}
					p.say(n.ID)
				}
				if !p.dryRun {
					p.warn(cmd, e)
				}
				return nil
			})
		},
	}
	c.flags(cmd)
	refuse(cmd, "network create")
	return p.changing(cmd)
}

func (c *createFlags) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVarP(&c.driver, "driver", "d", "bridge", "`driver`: bridge, or link (a bare veth pair with two ends)")
	f.StringSliceVar(&c.subnets, "subnet", nil, "a `prefix`, as 10.9.0.0/24; several, of both families, are allowed; 0.0.0.0/24 is any of that size")
	f.StringSliceVar(&c.gateways, "gateway", nil, "the host's `address` in a subnet, or with --opt address=false its router's (default: the first)")
	f.StringSliceVar(&c.ranges, "ip-range", nil, "the `part` of a subnet that addresses are handed out from")
	f.StringArrayVar(&c.aux, "aux-address", nil, "an address that is never handed out, as `NAME=ADDRESS`")
	f.BoolVar(&c.ipv4, "ipv4", true, "with an IPv4 subnet")
	f.BoolVar(&c.ipv6, "ipv6", false, "with an IPv6 subnet, of the host's own ULA prefix unless given")
	f.BoolVar(&c.internal, "internal", false, "no way out")
	f.StringArrayVarP(&c.opts, "opt", "o", nil, "an option, as `NAME=VALUE`")
	f.StringArrayVar(&c.labels, "label", nil, "a label, as `KEY=VALUE`")
	completeFlag(cmd, "driver", cobra.FixedCompletions([]cobra.Completion{string(berth.Bridge), string(berth.Link)}, cobra.ShellCompDirectiveNoFileComp))
	completeFlag(cmd, "opt", completeOptions)
	for _, name := range []string{"subnet", "gateway", "ip-range", "aux-address", "label"} {
		completeFlag(cmd, name, cobra.NoFileCompletions)
	}
}

// specs turns the flags into a spec for each name.
func (c *createFlags) specs(names []string) ([]engine.NetworkSpec, error) {
	var out []engine.NetworkSpec
	for _, name := range names {
		s := engine.NetworkSpec{Name: name, Driver: berth.Driver(c.driver), NoIPv4: !c.ipv4, IPv6: c.ipv6, Internal: c.internal}
		var err error
		if s.Options, err = keyValues("opt", c.opts); err != nil {
			return nil, err
		}
		if s.Labels, err = keyValues("label", c.labels); err != nil {
			return nil, err
		}
		if s.Subnets, err = subnets(c.subnets, c.gateways, c.ranges, c.aux); err != nil {
			return nil, usage(err)
		}
		out = append(out, s)
	}
	return out, nil
}

// subnets puts gateways, ranges and auxiliary addresses to the subnets they
// lie in, as Docker does.
func subnets(prefixes, gateways, ranges, aux []string) ([]berth.Subnet, error) {
	var out []berth.Subnet
	for _, text := range prefixes {
		p, err := netip.ParsePrefix(strings.TrimSpace(text))
		if err != nil {
			return nil, fmt.Errorf("--subnet %q: a prefix is wanted, as 10.9.0.0/24", text)
		}
		out = append(out, berth.Subnet{Prefix: p})
	}
	for _, text := range gateways {
		a, err := netip.ParseAddr(strings.TrimSpace(text))
		if err != nil {
			return nil, fmt.Errorf("--gateway %q: an address is wanted, as 10.9.0.1", text)
		}
		s := holder(out, a)
		if s == nil {
			return nil, fmt.Errorf("--gateway %s lies in no --subnet", a)
		}
		if s.Gateway.IsValid() {
			return nil, fmt.Errorf("--gateway %s: subnet %s has %s already", a, s.Prefix, s.Gateway)
		}
		s.Gateway = a
	}
	for _, text := range ranges {
		r, err := netip.ParsePrefix(strings.TrimSpace(text))
		if err != nil {
			return nil, fmt.Errorf("--ip-range %q: a prefix is wanted, as 10.9.0.128/25", text)
		}
		s := holder(out, r.Addr())
		if s == nil || r.Bits() < s.Prefix.Bits() {
			return nil, fmt.Errorf("--ip-range %s lies in no --subnet", r)
		}
		if s.Range.IsValid() {
			return nil, fmt.Errorf("--ip-range %s: subnet %s has %s already", r, s.Prefix, s.Range)
		}
		s.Range = r.Masked()
	}
	return out, auxiliary(out, aux)
}

func auxiliary(subnets []berth.Subnet, words []string) error {
	for _, w := range words {
		name, text, _ := strings.Cut(w, "=")
		a, err := netip.ParseAddr(text)
		if name == "" || err != nil {
			return fmt.Errorf("--aux-address %q: NAME=ADDRESS is wanted, as router=10.9.0.9", w)
		}
		s := holder(subnets, a)
		if s == nil {
			return fmt.Errorf("--aux-address %s lies in no --subnet", w)
		}
		if s.Aux == nil {
			s.Aux = map[string]netip.Addr{}
		}
		s.Aux[name] = a
	}
	return nil
}

// holder finds the subnet an address lies in.
func holder(subnets []berth.Subnet, a netip.Addr) *berth.Subnet {
	for i := range subnets {
		if subnets[i].Prefix.Contains(a) {
			return &subnets[i]
		}
	}
	return nil
}

// warn shows what other tools' firewalls drop of what networks may do. That it
// could not look is no reason to say that nothing was made.
func (p *program) warn(cmd *cobra.Command, e *engine.Engine) {
	found, err := e.Obstacles(cmd.Context())
	if err != nil {
		fmt.Fprintf(p.err, "warning: %s\n", oneLine(err.Error()))
	}
	for _, o := range found {
		p.obstacle(o)
	}
}

func (p *program) obstacle(o engine.Obstacle) {
	fmt.Fprintf(p.err, "warning: %s (%s) drops %s\ncure: %s\n", o.Who, o.Where, o.What, o.Cure)
}
