package cli

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"berth"
	"berth/engine"
)

func (p *program) network() *cobra.Command {
	cmd := &cobra.Command{
		Use: "network", Short: "Networks, and who is connected to them",
		Example: "  berth network create --subnet 10.9.0.0/24 front\n  berth network connect front web",
	}
	cmd.AddCommand(p.networkCreate(), p.networkRemove(), p.networkList(), p.networkInspect(), p.connect(), p.disconnect(), p.networkPrune())
	return cmd
}

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
overlaps no route, address or other network of this host.

Options (--opt): icc=false (neighbours do not reach each other), mtu=BYTES,
bridge=NAME (a bridge of this name; one that exists is used and never deleted),
masquerade=false, host=deny (the host's own services are closed to the network),
and for a link host=false (two sandboxes, without the host). Docker's
com.docker.network.* names of these are understood.`,
		Example: "  berth network create front back\n  berth network create --ipv6 --subnet 10.9.0.0/24 --gateway 10.9.0.254 front\n  berth network create --driver link --opt host=false wire",
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.with(cmd.Context(), func(e *engine.Engine) error {
				for _, name := range args {
					spec, err := c.spec(name)
					if err != nil {
						return err
					}
					n, err := e.CreateNetwork(cmd.Context(), spec)
					if err != nil {
						return err
					}
					p.say(n.ID)
				}
				if p.dryRun {
					return nil
				}
				return p.warn(cmd, e)
			})
		},
	}
	f := cmd.Flags()
	f.StringVarP(&c.driver, "driver", "d", "bridge", "bridge, or link (a bare veth pair with two ends)")
	f.StringArrayVar(&c.subnets, "subnet", nil, "subnet in CIDR form; several are allowed, of both families; 0.0.0.0/24 is any of that size")
	f.StringArrayVar(&c.gateways, "gateway", nil, "the host's address in a subnet")
	f.StringArrayVar(&c.ranges, "ip-range", nil, "hand out addresses of this part of a subnet")
	f.StringArrayVar(&c.aux, "aux-address", nil, "NAME=ADDRESS that is never handed out")
	f.BoolVar(&c.ipv4, "ipv4", true, "with an IPv4 subnet")
	f.BoolVar(&c.ipv6, "ipv6", false, "with an IPv6 subnet, of the host's own ULA prefix unless given")
	f.BoolVar(&c.internal, "internal", false, "no way out")
	f.StringArrayVarP(&c.opts, "opt", "o", nil, "OPTION=VALUE")
	f.StringArrayVar(&c.labels, "label", nil, "KEY=VALUE")
	cmd.RegisterFlagCompletionFunc("driver", cobra.FixedCompletions([]string{"bridge", "link"}, cobra.ShellCompDirectiveNoFileComp))
	cmd.RegisterFlagCompletionFunc("opt", cobra.FixedCompletions(engine.OptionNames(), cobra.ShellCompDirectiveNoSpace))
	return p.changing(cmd)
}

// spec checks the flags and puts gateways, ranges and auxiliary addresses to
// the subnets they lie in.
func (c createFlags) spec(name string) (engine.NetworkSpec, error) {
	s := engine.NetworkSpec{Name: name, Driver: berth.Driver(c.driver), NoIPv4: !c.ipv4, IPv6: c.ipv6, Internal: c.internal}
	var err error
	if s.Options, err = keyValues("opt", c.opts); err != nil {
		return s, err
	}
	if s.Labels, err = keyValues("label", c.labels); err != nil {
		return s, err
	}
	for _, text := range c.subnets {
		for _, t := range strings.Split(text, ",") {
			prefix, err := netip.ParsePrefix(strings.TrimSpace(t))
			if err != nil {
				return s, usage(fmt.Errorf("--subnet %q: a subnet in CIDR form is wanted, as 10.9.0.0/24", t))
			}
			s.Subnets = append(s.Subnets, berth.Subnet{Prefix: prefix})
		}
	}
	for _, g := range c.gateways {
		a, err := netip.ParseAddr(g)
		if err != nil {
			return s, usage(fmt.Errorf("--gateway %q: an address is wanted, as 10.9.0.1", g))
		}
		if err := to(s.Subnets, "gateway", a, func(sub *berth.Subnet) { sub.Gateway = a }); err != nil {
			return s, err
		}
	}
	for _, r := range c.ranges {
		q, err := netip.ParsePrefix(r)
		if err != nil {
			return s, usage(fmt.Errorf("--ip-range %q: a prefix is wanted, as 10.9.0.128/25", r))
		}
		if err := to(s.Subnets, "ip-range", q.Addr(), func(sub *berth.Subnet) { sub.Range = q.Masked() }); err != nil {
			return s, err
		}
	}
	return s, c.auxiliary(s.Subnets)
}

func (c createFlags) auxiliary(subnets []berth.Subnet) error {
	for _, x := range c.aux {
		name, text, ok := strings.Cut(x, "=")
		a, err := netip.ParseAddr(text)
		if !ok || err != nil {
			return usage(fmt.Errorf("--aux-address %q: NAME=ADDRESS is wanted, as router=10.9.0.9", x))
		}
		err = to(subnets, "aux-address", a, func(sub *berth.Subnet) {
			if sub.Aux == nil {
				sub.Aux = map[string]netip.Addr{}
			}
			sub.Aux[name] = a
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// to finds the subnet an address lies in.
func to(subnets []berth.Subnet, flag string, a netip.Addr, do func(*berth.Subnet)) error {
	for i := range subnets {
		if subnets[i].Prefix.Contains(a) {
			do(&subnets[i])
			return nil
		}
	}
	return usage(fmt.Errorf("--%s %s lies in no --subnet", flag, a))
}

// warn shows what of other tools stands in the way of networks.
func (p *program) warn(cmd *cobra.Command, e *engine.Engine) error {
	found, err := e.Obstacles(cmd.Context())
	for _, o := range found {
		p.obstacle(o)
	}
	return err
}

func (p *program) obstacle(o engine.Obstacle) {
	fmt.Fprintf(p.err, "warning: %s (%s) drops %s\ncure: %s\n", o.Who, o.Where, o.What, o.Cure)
}

func (p *program) networkRemove() *cobra.Command {
	var o engine.RemoveOptions
	cmd := &cobra.Command{
		Use: "rm NETWORK…", Aliases: []string{"remove"}, Short: "Remove networks", Args: cobra.MinimumNArgs(1),
		Example:           "  berth network rm front back\n  berth network rm --force front",
		ValidArgsFunction: p.completeNetworks,
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.with(cmd.Context(), func(e *engine.Engine) error {
				var errs []error
				for _, name := range args {
					if err := e.RemoveNetwork(cmd.Context(), name, o); err != nil {
						errs = append(errs, err)
						continue
					}
					p.say(name)
				}
				return errors.Join(errs...)
			})
		},
	}
	cmd.Flags().BoolVarP(&o.Force, "force", "f", false, "disconnect the sandboxes that are connected")
	return p.changing(cmd)
}

func (p *program) networkPrune() *cobra.Command {
	var filters []string
	cmd := &cobra.Command{
		Use: "prune", Short: "Remove all networks without endpoints", Args: cobra.NoArgs,
		Example: "  berth network prune --filter label=ci",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.with(cmd.Context(), func(e *engine.Engine) error {
				all, err := e.Networks(cmd.Context())
				if err != nil {
					return err
				}
				var errs []error
				for _, n := range all {
					ok, err := matchAll(filters, networkFilters(n))
					if err != nil {
						return err
					}
					if !ok || len(n.Endpoints) > 0 {
						continue
					}
					// One that was connected since is in use, and stays.
					if err := e.RemoveNetwork(cmd.Context(), n.ID, engine.RemoveOptions{}); err == nil {
						p.say(n.Name)
					} else if !errors.Is(err, berth.ErrInUse) {
						errs = append(errs, err)
					}
				}
				return errors.Join(errs...)
			})
		},
	}
	cmd.Flags().BoolP("force", "f", false, "as Docker's; there is no question to be answered")
	cmd.Flags().StringArrayVar(&filters, "filter", nil, "only what matches KEY=VALUE")
	return p.changing(cmd)
}

// A networkRow is a network as Docker lists it.
type networkRow struct {
	ID, Name, Driver, Scope, IPv4, IPv6, Internal, Labels, CreatedAt string
}

func networkFilters(n engine.NetworkDetail) map[string]func(string) bool {
	return map[string]func(string) bool{
		"driver":   func(v string) bool { return string(n.Driver) == v },
		"id":       func(v string) bool { return strings.HasPrefix(n.ID, v) },
		"name":     func(v string) bool { return strings.Contains(n.Name, v) },
		"label":    func(v string) bool { return hasLabel(n.Labels, v) },
		"scope":    func(v string) bool { return v == "local" },
		"type":     func(v string) bool { return v == "custom" },
		"internal": func(v string) bool { return strconv.FormatBool(n.Internal) == v },
		"dangling": func(v string) bool { return strconv.FormatBool(len(n.Endpoints) == 0) == v },
	}
}

func (p *program) networkList() *cobra.Command {
	var l list
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List networks", Args: cobra.NoArgs,
		Example: "  berth network ls --filter driver=link\n  berth network ls --format '{{.Name}}: {{.IPv6}}'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return p.with(cmd.Context(), func(e *engine.Engine) error {
				all, err := e.Networks(cmd.Context())
				if err != nil {
					return err
				}
				var rows []networkRow
				for _, n := range all {
					ok, err := matchAll(l.filters, networkFilters(n))
					if err != nil {
						return err
					}
					if ok {
						rows = append(rows, networkRow{short(n.ID, l.noTrunc), n.Name, string(n.Driver), "local", strconv.FormatBool(n.Has4()),
							strconv.FormatBool(n.Has6()), strconv.FormatBool(n.Internal), labelsText(n.Labels), n.Created.Format("2006-01-02 15:04:05 -0700 MST")})
					}
				}
				return show(l, p.out, []column{{"NETWORK ID", "ID"}, {"NAME", "Name"}, {"DRIVER", "Driver"}, {"SCOPE", "Scope"}}, rows)
			})
		},
	}
	l.flags(cmd)
	return cmd
}

func (p *program) networkInspect() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "inspect NETWORK…", Short: "Show networks in detail", Args: cobra.MinimumNArgs(1),
		Example:           "  berth network inspect front\n  berth network inspect -f '{{range .Refused}}{{.Reason}} {{.Packets}}{{println}}{{end}}' front",
		ValidArgsFunction: p.completeNetworks,
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.with(cmd.Context(), func(e *engine.Engine) error {
				out, errs := []networkJSON{}, []error{}
				for _, name := range args {
					d, err := e.InspectNetwork(cmd.Context(), name)
					if err != nil {
						errs = append(errs, err)
						continue
					}
					out = append(out, networkAsJSON(d))
				}
				return errors.Join(append(errs, inspect(p.out, format, out))...)
			})
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", `"json" or a Go template`)
	return cmd
}

// connectFlags are the flags of "network connect" as they are typed.
type connectFlags struct {
	ip, ip6, mac, dev string
	aliases, labels   []string
	priority          int
}

func (p *program) connect() *cobra.Command {
	var c connectFlags
	cmd := &cobra.Command{
		Use: "connect NETWORK SANDBOX", Short: "Connect a sandbox to a network", Args: cobra.ExactArgs(2),
		Example:           "  berth network connect front web\n  berth network connect --ip 10.9.0.7 front pid:4711\n  berth network connect --interface eth1 back path:/proc/4711/ns/net",
		ValidArgsFunction: p.completeConnect,
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := c.options()
			if err != nil {
				return err
			}
			return p.with(cmd.Context(), func(e *engine.Engine) error {
				ep, err := e.Connect(cmd.Context(), args[0], args[1], o)
				if err != nil {
					return err
				}
				words := []string{ep.Interface}
				for _, a := range ep.Addrs {
					words = append(words, a.String())
				}
				p.say(strings.Join(words, " "))
				return nil
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.ip, "ip", "", "IPv4 address (default: the next free one)")
	f.StringVar(&c.ip6, "ip6", "", "IPv6 address (default: the next free one)")
	f.StringVar(&c.mac, "mac-address", "", "MAC address (default: a function of network and address)")
	f.StringVar(&c.dev, "interface", "", "name inside the sandbox (default: the first free eth0, eth1, …)")
	f.StringArrayVar(&c.aliases, "alias", nil, "another name for the sandbox on this network")
	f.IntVar(&c.priority, "gw-priority", 0, "the network with the highest gives the default route")
	f.StringArrayVar(&c.labels, "label", nil, "KEY=VALUE")
	return p.changing(cmd)
}

func (c connectFlags) options() (engine.ConnectOptions, error) {
	o := engine.ConnectOptions{Interface: c.dev, Aliases: c.aliases, GwPriority: c.priority}
	var err error
	if o.Labels, err = keyValues("label", c.labels); err != nil {
		return o, err
	}
	for _, a := range []struct {
		flag, text string
		into       *netip.Addr
		v4         bool
	}{{"ip", c.ip, &o.IP4, true}, {"ip6", c.ip6, &o.IP6, false}} {
		if a.text == "" {
			continue
		}
		if *a.into, err = netip.ParseAddr(a.text); err != nil || a.into.Is4() != a.v4 {
			return o, usage(fmt.Errorf("--%s %q: an address of that family is wanted", a.flag, a.text))
		}
	}
	if c.mac != "" {
		if o.MAC, err = berth.ParseMAC(c.mac); err != nil {
			return o, usage(fmt.Errorf("--mac-address: %w", err))
		}
		if o.MAC[0]&1 != 0 {
			return o, usage(fmt.Errorf("--mac-address %s: it is a group's address", c.mac))
		}
	}
	return o, nil
}

func (p *program) disconnect() *cobra.Command {
	var o engine.DisconnectOptions
	cmd := &cobra.Command{
		Use: "disconnect NETWORK SANDBOX…", Short: "Disconnect sandboxes from a network", Args: cobra.MinimumNArgs(2),
		Example:           "  berth network disconnect front web api",
		ValidArgsFunction: p.completeConnect,
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.with(cmd.Context(), func(e *engine.Engine) error {
				sandboxes := slices.Compact(slices.Sorted(slices.Values(args[1:])))
				return e.Disconnect(cmd.Context(), args[0], sandboxes, o)
			})
		},
	}
	cmd.Flags().StringVar(&o.Interface, "interface", "", "only the endpoint at this interface")
	cmd.Flags().BoolP("force", "f", false, "as Docker's; it makes no difference")
	return p.changing(cmd)
}
