package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// keeper parses what strangers publish and writes what is signed, so its unit has no network: no interface, and no socket but unix ones. Who connects for it
// is a process of another user, one for each connection, started by systemd (ocspd-dialer.socket), that has nothing else and lives for nothing else:
// it reads an address, connects, hands over the connected socket (SCM_RIGHTS in unix(7)), and ends. TLS and HTTP are keeper's, on the socket that it got.

const (
	dialTime   = 30 * time.Second
	maxAddress = 300 // octets of "host:port": a name of DNS has 255 at most
)

// newDialCmd is what systemd starts, with keeper at the other end of standard input.
func newDialCmd() *cobra.Command {
	return &cobra.Command{
		Use: "dial", Short: "Connect to one address for keeper", Hidden: true, Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			conn, err := net.FileConn(os.Stdin)
			if err != nil {
				return fmt.Errorf("dial: standard input is no socket: %w; systemd starts this for keeper", err)
			}
			defer conn.Close()
			keeper, ok := conn.(*net.UnixConn)
			if !ok {
				return errors.New("dial: standard input is no unix socket; systemd starts this for keeper")
			}
			return serveDial(c.Context(), keeper)
		},
	}
}

// serveDial reads an address that a newline ends, and answers with an empty line and the connected socket, or with a line that says why there is none.
func serveDial(ctx context.Context, keeper *net.UnixConn) error {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	keeper.SetDeadline(time.Now().Add(2 * dialTime))
	address, err := bufio.NewReader(io.LimitReader(keeper, maxAddress)).ReadString('\n')
	if err != nil {
		return fmt.Errorf("dial: no address was given: %w", err)
	}
	out, err := new(net.Dialer).DialContext(ctx, "tcp", strings.TrimSuffix(address, "\n"))
	if err != nil {
		_, err = fmt.Fprintf(keeper, "%s\n", oneLine(err.Error(), 1000))
		return err
	}
	defer out.Close()
	file, err := out.(*net.TCPConn).File()
	if err != nil {
		return fmt.Errorf("dial: %w", err)
	}
	defer file.Close()
	_, _, err = keeper.WriteMsgUnix([]byte("\n"), syscall.UnixRights(int(file.Fd())), nil)
	return err
}

// dialFor is how keeper connects to a source: by the dialer where systemd offers one, else by itself.
func dialFor(cfg *config) func(ctx context.Context, network, address string) (net.Conn, error) {
	direct := (&net.Dialer{Timeout: dialTime}).DialContext
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dialUnix(cfg.dialerSocket())(ctx)
		if errors.Is(err, fs.ErrNotExist) {
			return direct(ctx, network, address)
		}
		if err != nil {
			return nil, fmt.Errorf("dialer: %w", err)
		}
		defer conn.Close()
		if until, ok := ctx.Deadline(); ok {
			conn.SetDeadline(until)
		}
		return askDialer(conn.(*net.UnixConn), address)
	}
}

func askDialer(dialer *net.UnixConn, address string) (net.Conn, error) {
	if len(address) >= maxAddress || strings.ContainsAny(address, "\r\n") {
		return nil, fmt.Errorf("dialer: %q is no address", cut(address, maxAddress))
	}
	if _, err := fmt.Fprintf(dialer, "%s\n", address); err != nil {
		return nil, fmt.Errorf("dialer: %w", err)
	}
	text, rights := make([]byte, 1024), make([]byte, syscall.CmsgSpace(4))
	n, r, _, _, err := dialer.ReadMsgUnix(text, rights)
	if err != nil {
		return nil, fmt.Errorf("dialer: %w", err)
	}
	if n == 0 {
		return nil, errors.New("dialer: it ended without an answer; its log says why (journalctl -u 'ocspd-dialer@*')")
	}
	messages, err := syscall.ParseSocketControlMessage(rights[:r])
	if err != nil || len(messages) != 1 {
		return nil, errors.New(oneLine(strings.TrimSuffix(string(text[:n]), "\n"), len(text)))
	}
	fds, err := syscall.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.New("dialer: its answer holds no socket")
	}
	file := os.NewFile(uintptr(fds[0]), address)
	defer file.Close()
	return net.FileConn(file)
}
