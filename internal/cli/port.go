package cli

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"berth"
	"berth/engine"
)

func (p *program) publish() *cobra.Command {
	var o engine.PublishOptions
	cmd := &cobra.Command{
		Use: "publish SANDBOX [HOST:]PORT[-PORT]:PORT[-PORT][/tcp|udp|sctp]…", Short: "Let ports of the host lead to a running sandbox",
		Long: `Let ports of the host lead to a running sandbox, all or none, at once. The
grammar is that of docker -p: 8888:80, 127.0.0.1:8888:80, [::1]:8888:80/udp,
8000-8002:80-82, 8000-8010:80 (one that is free), 80 or 127.0.0.1::80 (a random
one). The answer lists what is published.`,
		Args:              cobra.MinimumNArgs(2),
		Example:           "  berth publish web 8888:80\n  berth publish --replace green 443:8443",
		ValidArgsFunction: p.completeSandboxes,
		RunE: func(cmd *cobra.Command, args []string) error {
			var specs []berth.PortSpec
			for _, a := range args[1:] {
				s, err := berth.ParsePortSpec(a)
				if err != nil {
					return usage(err)
				}
				specs = append(specs, s...)
			}
			return p.with(cmd.Context(), func(e *engine.Engine) error {
				ports, err := e.Publish(cmd.Context(), args[0], specs, o)
				for _, x := range ports {
					p.say(portLine(x))
				}
				return err
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Network, "network", "", "lead to the endpoint on this network (default: the one with the default route)")
	f.BoolVar(&o.Replace, "replace", false, "take the ports over from other sandboxes; connections that stand stay where they are")
	f.BoolVar(&o.Cut, "cut", false, "with --replace: end the connections that stand")
	cmd.RegisterFlagCompletionFunc("network", p.completeNetworks)
	return p.changing(cmd)
}

func (p *program) unpublish() *cobra.Command {
	var everything bool
	cmd := &cobra.Command{
		Use: "unpublish SANDBOX {--all | SPEC…}", Short: "Take published ports back",
		Long: `Take published ports back, all or none, at once. A SPEC is one of "publish"
(8888:80, 127.0.0.1:8888:80/udp) or a host port alone: 8888, 8000-8002, 8888/udp.`,
		Args:              cobra.MinimumNArgs(1),
		Example:           "  berth unpublish web 8888\n  berth unpublish web --all",
		ValidArgsFunction: p.completePublished,
		RunE: func(cmd *cobra.Command, args []string) error {
			if everything == (len(args) > 1) {
				return usage(fmt.Errorf("unpublish %s: say which ports, or --all", args[0]))
			}
			var specs []berth.PortSpec
			for _, a := range args[1:] {
				s, err := unpublishSpec(a)
				if err != nil {
					return usage(err)
				}
				specs = append(specs, s...)
			}
			return p.with(cmd.Context(), func(e *engine.Engine) error {
				_, err := e.Unpublish(cmd.Context(), args[0], specs)
				return err
			})
		},
	}
	cmd.Flags().BoolVarP(&everything, "all", "a", false, "all ports of the sandbox")
	return p.changing(cmd)
}

// unpublishSpec reads a spec of "unpublish": where publish means a port of the
// sandbox, a port alone is one of the host.
func unpublishSpec(s string) ([]berth.PortSpec, error) {
	ports, proto, _ := strings.Cut(s, "/")
	if strings.Contains(ports, ":") {
		return berth.ParsePortSpec(s)
	}
	low, high, isRange := strings.Cut(ports, "-")
	if !isRange {
		high = low
	}
	l, err1 := strconv.ParseUint(low, 10, 16)
	h, err2 := strconv.ParseUint(high, 10, 16)
	spec := berth.PortSpec{Protocol: berth.Protocol(strings.ToLower(proto)), HostLow: uint16(l), HostHigh: uint16(h)}
	switch spec.Protocol {
	case "":
		spec.Protocol = berth.TCP
	case berth.TCP, berth.UDP, berth.SCTP:
	default:
		return nil, fmt.Errorf("port %q: the protocol is tcp, udp or sctp: %w", s, berth.ErrInvalid)
	}
	if err1 != nil || err2 != nil || l == 0 || h < l {
		return nil, fmt.Errorf("port %q: a host port is wanted, as 8888, 8000-8002 or 8888:80: %w", s, berth.ErrInvalid)
	}
	return []berth.PortSpec{spec}, nil
}

// A portRow is a published port in a list.
type portRow struct{ Sandbox, Network, Port, HostIP, HostPort, Protocol, To string }

func (p *program) port() *cobra.Command {
	var l list
	cmd := &cobra.Command{
		Use: "port [SANDBOX [PORT[/PROTOCOL]]]", Short: "Show published ports", Args: cobra.MaximumNArgs(2),
		Example:           "  berth port web\n  berth port web 80/tcp",
		ValidArgsFunction: p.completeSandboxes,
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.with(cmd.Context(), func(e *engine.Engine) error {
				sandbox := ""
				if len(args) > 0 {
					sandbox = args[0]
				}
				ports, err := e.Ports(cmd.Context(), sandbox)
				if err != nil {
					return err
				}
				if len(args) == 2 {
					return p.portOf(ports, args[0], args[1])
				}
				p.notes(ports)
				if l.format != "" || l.quiet || sandbox == "" {
					return show(l, p.out, []column{{"SANDBOX", "Sandbox"}, {"NETWORK", "Network"}, {"PORT", "Port"}, {"HOST IP", "HostIP"}, {"HOST PORT", "HostPort"}, {"TO", "To"}}, portRows(ports))
				}
				for _, x := range ports {
					fmt.Fprintln(p.out, portLine(x.Port))
				}
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&l.format, "format", "", `"table", "json", "table TEMPLATE" or a Go template`)
	return cmd
}

func portRows(ports []engine.PortDetail) []portRow {
	var rows []portRow
	for _, x := range ports {
		rows = append(rows, portRow{x.SandboxName, x.NetworkName, fmt.Sprintf("%d/%s", x.To.Port(), x.Protocol), x.HostIP.String(), fmt.Sprint(x.HostPort), string(x.Protocol), x.To.String()})
	}
	return rows
}

// notes says once what applies to several ports.
func (p *program) notes(ports []engine.PortDetail) {
	said := map[string]bool{}
	for _, x := range ports {
		for _, n := range x.Notes {
			if !said[n] {
				fmt.Fprintln(p.err, "note: "+n)
			}
			said[n] = true
		}
	}
}

// portOf prints where one port of a sandbox is published, as docker port does.
func (p *program) portOf(ports []engine.PortDetail, sandbox, which string) error {
	text, proto, ok := strings.Cut(which, "/")
	if !ok {
		proto = "tcp"
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return usage(fmt.Errorf("port %q: a port of the sandbox is wanted, as 80 or 80/udp", which))
	}
	found := false
	for _, x := range ports {
		if x.To.Port() == uint16(n) && string(x.Protocol) == strings.ToLower(proto) {
			fmt.Fprintln(p.out, netip.AddrPortFrom(x.HostIP, x.HostPort))
			found = true
		}
	}
	if !found {
		return fmt.Errorf("port %d/%s of %s is not published: %w", n, proto, sandbox, berth.ErrNotFound)
	}
	return nil
}
